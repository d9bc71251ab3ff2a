"""Training loops written out by hand, which the tricks are compared with.

A `Hand` is one trick's share of such a loop, in plain PyTorch and without the library's functions. `hand_fit` is the loop: it
shows where in a step each share belongs. Random numbers are keyed by fit, trick, epoch and batch, as documented, and drawn in the stated order."""
import hashlib, math, random
from contextlib import nullcontext
import numpy as np,torch,torch.nn.functional as F
import torchvision.transforms.v2 as tv
from torch.nn.utils import parametrize

def hashed_key(*parts): return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), 'big')//2

class Draws:
    'The random numbers of one trick in one batch'
    def __init__(self, seed, key):
        self.seed,self.key,self.gens = seed,key,{} # the key is epoch and batch
        self.py = random.Random(hashed_key(seed, key))
    def gen(self, device):
        if str(device) not in self.gens:
            self.gens[str(device)] = torch.Generator(device).manual_seed(hashed_key(self.seed, self.key, 0))
        return self.gens[str(device)]

def numpy_rng(rng): return np.random.default_rng([rng.py.getrandbits(64), 0])

class Hand:
    'What a trick does in a loop written by hand; the default does nothing'
    place = 0 # of `batch` and `after_step` among the tricks
    def __init__(self, trick): self.t = trick
    def start(self, model): pass
    def batch(self, x, probs, rng): return x,probs
    def smooth(self, probs): return probs
    def loss(self, loss, pred, probs, x): return loss
    def perturb(self, model, grads): return None
    def gradient(self, plain, second): return plain if second is None else second
    def clip(self, grads): return grads
    def after_step(self, model): pass
    def before_forward(self, model, rng): pass
    def after_epoch(self, model, batches): pass
    def end(self, model): pass

class MixUp(Hand):
    place = 3
    def batch(self, x, probs, rng):
        perm = torch.randperm(len(x), generator=rng.gen(x.device))
        if self.t.per_image: lam = [[o] for o in numpy_rng(rng).beta(self.t.alpha, self.t.alpha, len(x))]
        else: lam = [[rng.py.betavariate(self.t.alpha, self.t.alpha)]]*len(x)
        lam = torch.tensor(lam, dtype=x.dtype)
        return torch.stack([a*x[i] + (1-a)*x[perm[i]] for i,a in enumerate(lam)]), lam*probs + (1-lam)*probs[perm]

def sharpened(a, m):
    p = sum(a[i:i+30,j:j+30] for i in range(3) for j in range(3)) + 4*a[1:-1,1:-1]
    a = a.copy()
    a[1:-1,1:-1] += (a[1:-1,1:-1] - np.round(p/np.float32(13)))*m
    return a

def greys(a): return np.floor(a[...,:1]*0.2989 + a[...,1:2]*0.587 + a[...,2:]*0.114)

# blends, pixel by pixel: torchvision's round another way in the last place, and bytes are cut off, not rounded
blends = dict(Color=lambda a,m: a*(1+m) - greys(a)*m, Contrast=lambda a,m: a*(1+m) - greys(a).mean()*m,
    Sharpness=sharpened)

def operate(name, img, m):
    "One operation on one image of bytes: torchvision's"
    if name in blends:
        a = blends[name](img.permute(1,2,0).numpy().astype(np.float32), np.float32(m))
        return torch.from_numpy(a.clip(0, 255).astype(np.uint8)).permute(2,0,1)
    return tv.AutoAugment()._apply_image_or_video_transform(img, name, m, interpolation=tv.InterpolationMode.NEAREST,
        fill={torch.Tensor:None})

def policy(t, x, rng, draw, space):
    "An image policy, image by image: `draw(rng, b)` gives names and magnitudes"
    rng = np.random.default_rng(rng.py.getrandbits(64))
    ops,ms = draw(rng, len(x))
    minus,on = rng.random(ops.shape)<0.5,rng.random(len(x))<t.p
    imgs = list((x*255).round().to(torch.uint8))
    for r,i in np.ndindex(ops.shape):
        k = ops[r,i]
        if on[i] and k!='Identity': imgs[i] = operate(k, imgs[i], -ms[r,i] if space[k][1] and minus[r,i] else ms[r,i])
    return torch.stack(imgs).to(x.dtype)/255

def at(space, name, n, i):
    "Step `i` of `n` on torchvision's scale of an operation"
    scale = space[name][0](n, 32, 32)
    return 0. if scale is None else float(scale[i])

class AutoAugment(Hand):
    place = 0.1
    def batch(self, x, probs, rng):
        t = tv.AutoAugment(tv.AutoAugmentPolicy[self.t.policy.upper()])
        def draw(rng, b):
            subs,u = rng.integers(25, size=b),rng.random((2,b))
            rows = [[t._policies[s][r] for s in subs] for r in (0, 1)]
            ops = [[k if v<p else 'Identity' for (k,p,_),v in zip(row, vs)] for row,vs in zip(rows, u)]
            return np.array(ops),np.array([[at(t._AUGMENTATION_SPACE, k, 10, m or 0) for k,_,m in row] for row in rows])
        return policy(self.t, x, rng, draw, t._AUGMENTATION_SPACE),probs

def choices(space):
    return [k for k in 'Identity ShearX ShearY TranslateX TranslateY Rotate Brightness Color Contrast Sharpness '
        'Posterize Solarize AutoContrast Equalize'.split() if k in space]

class RandAugment(Hand):
    place = 0.1
    def batch(self, x, probs, rng):
        space = tv.RandAugment._AUGMENTATION_SPACE
        def draw(rng, b):
            ops = np.array(choices(space))[rng.integers(14, size=(self.t.n,b))]
            return ops,np.array([[at(space, k, 31, self.t.m) for k in o] for o in ops])
        return policy(self.t, x, rng, draw, space),probs

class TrivialAugment(Hand):
    place = 0.1
    def batch(self, x, probs, rng):
        space = tv.TrivialAugmentWide._AUGMENTATION_SPACE
        def draw(rng, b):
            ops = np.array(choices(space))[rng.integers(14, size=(1,b))]
            return ops,np.array([[at(space, k, 31, i) for k,i in zip(ops[0], rng.integers(31, size=(1,b))[0])]])
        return policy(self.t, x, rng, draw, space),probs

def mix_operation(name, img, u):
    "One operation of AugMix at level `u` of 10, with the magnitudes of its code"
    if name=='Solarize': return torch.where(img>=256-int(u*256/10), 255-img, img)
    scale = dict(Posterize=lambda: 4-int(u*4/10), Rotate=lambda: int(u*30/10), ShearX=lambda: u*0.3/10,
        ShearY=lambda: u*0.3/10, TranslateX=lambda: int(u*(32/3)/10), TranslateY=lambda: int(u*(32/3)/10))
    return scale.get(name, float)()

class AugMix(Hand):
    "Image by image and chain by chain, in bytes; predictions for the image and two mixes of it are compared"
    place = 0.4
    def batch(self, x, probs, rng):
        t,n,views = self.t,len(x),2 if self.t.jsd else 1
        imgs = (x*255).round().to(torch.uint8)
        a,b = (np.random.default_rng(rng.py.getrandbits(64)) for _ in range(2))
        many = t.width*views*n
        depths = a.integers(1, 4, size=many)
        names = np.array('AutoContrast Equalize Posterize Rotate Solarize ShearX ShearY TranslateX TranslateY'.split())
        names,levels = names[a.integers(9, size=(3,many))],a.uniform(0.1, t.severity, size=(3,many))
        minus = a.random((3,many))<0.5
        ws,ms = b.dirichlet([t.alpha]*t.width, size=views*n),b.beta(t.alpha, t.alpha, size=views*n)
        res = list(imgs) if t.jsd else []
        for v in range(views*n):
            img,total = imgs[v%n],np.float32(1-ms[v])*imgs[v%n].numpy().astype(np.float32)
            for c in range(t.width):
                o,k = img,c*views*n+v
                for name,u,neg in zip(names[:depths[k],k], levels[:,k], minus[:,k]):
                    m = mix_operation(name, o, u)
                    if name!='Solarize': m = operate(name, o, -m if neg and name[0] in 'RST' else m)
                    o = m
                total = total + np.float32(ms[v]*ws[v,c])*o.numpy().astype(np.float32)
            res.append(torch.from_numpy(total.round().astype(np.uint8)))
        return torch.stack(res).to(x.dtype)/255,probs
    def loss(self, loss, pred, probs, x):
        if not self.t.jsd: return loss
        ps = [o.softmax(1) for o in (pred, *self.views.chunk(2))]
        mean = (sum(ps)/3).clamp(min=1e-7)
        return loss + self.t.jsd*sum((p*(p.log()-mean.log())).sum(1) for p in ps).mean()/3

class RandomCrop(Hand):
    place = 0.2
    def batch(self, x, probs, rng):
        p = self.t.pad
        tops,lefts = torch.randint(0, 2*p+1, (2,len(x)), generator=rng.gen('cpu')).tolist()
        padded = F.pad(x, (p,)*4, mode='reflect' if self.t.mode=='reflect' else 'constant')
        return torch.stack([o[:,i:i+32,j:j+32] for o,i,j in zip(padded, tops, lefts)]),probs

def boxes(t, x, rng):
    "Boxes by the rule, image by image, or None: ten tries each"
    h,w = x.shape[2:]
    u = torch.rand(4, 10, len(x), generator=rng.gen('cpu'))
    for k in range(len(x)):
        box = None
        for size,aspect in u[:2,:,k].T:
            size,(lo,hi) = (t.area[0] + (t.area[1]-t.area[0])*size)*h*w,t.aspect
            aspect = torch.exp(math.log(lo) + math.log(hi/lo)*aspect) if getattr(t, 'log_aspect',
                True) else lo + (hi-lo)*aspect
            bh,bw = int(torch.round((size*aspect)**0.5)),int(torch.round((size/aspect)**0.5))
            if bh<=h and bw<=w:
                box = int(u[2,0,k]*(h-bh+1)),int(u[3,0,k]*(w-bw+1)),bh,bw
                break
        yield box

class RandomResizedCrop(Hand):
    place = 0.2
    def batch(self, x, probs, rng):
        bs = list(boxes(self.t, x, rng))
        on = torch.rand(len(x), generator=rng.gen('cpu'))<self.t.p
        def cut(o, b):
            return o if b is None else F.interpolate(o[None,:,b[0]:b[0]+b[2],b[1]:b[1]+b[3]], (32,32),
                mode='bilinear')[0]
        return torch.stack([cut(o, b) if i else o for o,b,i in zip(x, bs, on)]),probs

def hashed(img, key):
    "A number from 0 to 1 from an image's pixels, in Python's whole numbers"
    s = sum(i*v for i,v in enumerate((img*100).round().long().flatten().tolist(), 1))%2**32 ^ key
    for _ in range(2): s = (s ^ s>>16)*0x45d9f3b % 2**32
    return (s ^ s>>16)/2**32

class Flip(Hand):
    "At random; or, alternating, before all else: some images in even epochs, the others in odd ones"
    place = property(lambda self: 0.05 if self.t.alternate else 0.3)
    def start(self, model): self.odd = False
    def after_epoch(self, model, batches): self.odd = not self.odd
    def batch(self, x, probs, rng):
        if self.t.alternate:
            key = random.Random(rng.seed).getrandbits(32)
            on = [(hashed(o, key)<self.t.p)!=self.odd for o in x]
        else: on = torch.rand(len(x), generator=rng.gen('cpu'))<self.t.p
        return torch.stack([o.flip(2) if i else o for o,i in zip(x, on)]),probs

class Cutout(Hand):
    place = 2
    def batch(self, x, probs, rng):
        x,n = x.clone(),self.t.length
        rows,cols = (torch.randint(0, 32, (len(x),), generator=rng.gen('cpu')).tolist() for _ in range(2))
        for o,i,j in zip(x, rows, cols): o[:,max(i-n//2,0):i+n//2,max(j-n//2,0):j+n//2] = 0
        return x,probs

class RandomErasing(Hand):
    place = 2
    def batch(self, x, probs, rng):
        x,bs = x.clone(),list(boxes(self.t, x, rng))
        on = torch.rand(len(x), generator=rng.gen('cpu'))<self.t.p
        for o,b,i in zip(x, bs, on):
            if i and b: o[:,b[0]:b[0]+b[2],b[1]:b[1]+b[3]] = 0
        return x,probs

def swapped(x, probs, perm, i, j, lam):
    "Each image with a box of its partner, and the target by the pixels inside: image by image"
    imgs,targets = [],[]
    for k in range(len(x)):
        mask,half = torch.zeros(32, 32, dtype=x.dtype),int(32*(1-lam[k])**0.5)//2
        mask[max(i[k]-half,0):i[k]+half,max(j[k]-half,0):j[k]+half] = 1
        imgs.append(torch.where(mask>0, x[perm[k]], x[k]))
        targets.append((1-mask.mean())*probs[k] + mask.mean()*probs[perm[k]])
    return torch.stack(imgs),torch.stack(targets)

class CutMix(Hand):
    place = 3
    def batch(self, x, probs, rng):
        if self.t.per_image:
            g,n = numpy_rng(rng),len(x)
            on,i,j = g.random(n)<self.t.p,g.integers(32, size=n),g.integers(32, size=n)
            lam = [v if o else 1 for o,v in zip(on, g.beta(self.t.beta, self.t.beta, n))]
            return swapped(x, probs, torch.randperm(n, generator=rng.gen(x.device)), i, j, lam)
        if rng.py.random()>=self.t.p: return x,probs
        i,j,lam = rng.py.randrange(32),rng.py.randrange(32),rng.py.betavariate(self.t.beta, self.t.beta)
        perm,half = torch.randperm(len(x), generator=rng.gen(x.device)),int(32*(1-lam)**0.5)//2
        mask = torch.zeros(32, 32, dtype=x.dtype)
        mask[max(i-half,0):i+half,max(j-half,0):j+half] = 1
        return torch.where(mask>0, x[perm], x),(1-mask.mean())*probs + mask.mean()*probs[perm]

class ResizeMix(Hand):
    place = 3
    def batch(self, x, probs, rng):
        if rng.py.random()>=self.t.p: return x,probs
        lo,hi = self.t.scale
        side = max(1, round(32*(lo+(hi-lo)*rng.py.random())))
        i,j = (rng.py.randint(0, 32-side) for _ in range(2))
        perm,x = torch.randperm(len(x), generator=rng.gen(x.device)),x.clone()
        for o,small in zip(x, tv.functional.resize(x[perm], [side,side], antialias=True)): o[:,i:i+side,j:j+side] = small
        return x,probs + (probs[perm]-probs)*side**2/1024

class RICAP(Hand):
    place = 3
    def batch(self, x, probs, rng):
        w,h = (int(round(32*rng.py.betavariate(self.t.beta, self.t.beta))) for _ in range(2))
        sizes = [(h, w), (h, 32-w), (32-h, w), (32-h, 32-w)]
        at = [(rng.py.randint(0, 32-i), rng.py.randint(0, 32-j)) for i,j in sizes]
        perms = [torch.randperm(len(x), generator=rng.gen(x.device)) for _ in sizes]
        a,b,c,d = (x[perm,:,i:i+p,j:j+q] for perm,(p,q),(i,j) in zip(perms, sizes, at))
        top,bottom = torch.cat([a, b], 3),torch.cat([c, d], 3)
        return torch.cat([top, bottom], 2),sum(probs[perm]*(p*q/1024) for perm,(p,q) in zip(perms, sizes))

def turn(t, i, x, probs, rng):
    "Mixer `i` of several, with numbers of its own"
    m,kinds = t.mixers[i],[type(o).__name__ for o in t.mixers]
    return hands[kinds[i]](m).batch(x, probs, Draws(f'{rng.seed}/{kinds[i]}/{kinds[:i].count(kinds[i])}', rng.key))

class OneOf(Hand):
    place = 3
    def batch(self, x, probs, rng):
        n,u,total = len(self.t.mixers),rng.py.random(),0
        for i in range(n):
            total += self.t.p[i] if isinstance(self.t.p, tuple) else self.t.p/n
            if u<total: return turn(self.t, i, x, probs, rng)
        return x,probs

class Chain(Hand):
    place = 3
    def batch(self, x, probs, rng):
        for i in range(len(self.t.mixers)): x,probs = turn(self.t, i, x, probs, rng)
        return x,probs

class LabelSmoothing(Hand):
    def smooth(self, probs): return probs*(1-self.t.eps) + self.t.eps/probs.shape[1]

class ManifoldMixUp(Hand):
    "At the input, or after the second module of the tests' network"
    place = 5.5
    def start(self, model):
        self.depth = None
        self.hooks = [model.register_forward_pre_hook(lambda m, x: self.mixed(x[0]) if self.depth==0 else None),
            model[1].register_forward_hook(lambda m, x, y: self.mixed(y) if self.depth==1 else None)]
    def mixed(self, o): return self.lam*o + (1-self.lam)*o[self.perm]
    def batch(self, x, probs, rng):
        self.depth,self.lam = rng.py.choice([0, 1]),rng.py.betavariate(self.t.alpha, self.t.alpha)
        self.perm = torch.randperm(len(x), generator=rng.gen(x.device))
        return x,self.mixed(probs)
    def after_step(self, model): self.depth = None
    def end(self, model): [h.remove() for h in self.hooks]

class SAM(Hand):
    i = -1
    def perturb(self, model, grads):
        self.i += 1
        if self.i%self.t.every: return None
        if self.t.only: # the layers that the networks of these tests have
            kinds = torch.nn.BatchNorm2d,torch.nn.GroupNorm,torch.nn.LayerNorm
            layers = [n for n,m in model.named_modules() if isinstance(m, kinds)]
            grads = {n:g for n,g in grads.items() if n.rpartition('.')[0] in layers}
        norm = torch.sqrt(sum((g**2).sum() for g in grads.values()))
        return {n:self.t.rho*g/norm for n,g in grads.items()}

class LookSAM(SAM, Hand):
    def gradient(self, plain, second):
        a = torch.cat([g.flatten() for g in plain.values()])
        if second is not None:
            b = torch.cat([g.flatten() for g in second.values()])
            self.v = b - (a@b)/(a@a)*a
            return second
        a = a + self.t.alpha*a.norm()/self.v.norm()*self.v
        return {n:g.view_as(plain[n]) for n,g in zip(plain, a.split([g.numel() for g in plain.values()]))}

class ASAM(Hand):
    def perturb(self, model, grads):
        ps = dict(model.named_parameters())
        t = {n:ps[n].detach().abs()+self.t.eta if 'weight' in n else torch.ones_like(g) for n,g in grads.items()}
        norm = torch.sqrt(sum(((t[n]*g)**2).sum() for n,g in grads.items()))
        return {n:self.t.rho*t[n]**2*g/norm for n,g in grads.items()}

class KD(Hand):
    place = 6 # weighs the loss with all of its terms against the teacher
    def loss(self, loss, pred, probs, x):
        T,a = self.t.T,self.t.alpha
        with torch.no_grad(): z = self.t.teacher.net.eval()(x.double()).to(pred.dtype)
        p,q = (torch.softmax(o/T, 1) for o in (z, pred))
        return (1-a)*loss + a*T*T*(p*(p.log()-q.log())).sum(1).mean()

class DKD(Hand):
    'By the equations of the paper, image by image and class by class; the warmup of epoch 1, 2, ... of the fit'
    def start(self, model): self.epoch = 1
    def after_epoch(self, model, batches): self.epoch += 1
    def loss(self, loss, pred, probs, x):
        T,n = self.t.T,pred.shape[1]
        with torch.no_grad(): z = self.t.teacher.net.eval()(x.double()).to(pred.dtype)
        total = 0
        for a,b,y in zip(z, pred, probs):
            p,q = torch.exp(a/T)/torch.exp(a/T).sum(),torch.exp(b/T)/torch.exp(b/T).sum()
            for t in range(n):
                tckd = p[t]*torch.log(p[t]/q[t]) + (1-p[t])*torch.log((1-p[t])/(1-q[t]))
                p_hat,q_hat = ([o[i]/(1-o[t]) for i in range(n) if i!=t] for o in (p, q))
                nckd = sum(u*torch.log(u/v) for u,v in zip(p_hat, q_hat))
                total = total + y[t]*(self.t.alpha*tckd + self.t.beta*nckd)*T*T
        rise = min(self.epoch/(self.t.warmup*self.epochs), 1) if self.t.warmup else 1
        return loss + rise*total/len(x)

class EMA(Hand):
    place = 9
    def start(self, model): self.avg,self.n = {k:v.clone() for k,v in model.state_dict().items()},0
    def after_step(self, model):
        d = min(self.t.decay, (1+self.n)/(10+self.n))
        self.n += 1
        for k,v in model.state_dict().items():
            self.avg[k] = d*self.avg[k] + (1-d)*v if v.is_floating_point() else v.clone()
    def end(self, model): model.load_state_dict(self.avg)

class SWA(Hand):
    "The mean of the ends of all epochs; afterwards the statistics of BatchNorm are means over the batches"
    def start(self, model): self.ends = []
    def after_epoch(self, model, batches):
        self.ends.append({n:p.detach().clone() for n,p in model.named_parameters()})
        self.batches = batches
    def end(self, model):
        with torch.no_grad(): [p.copy_(sum(e[n] for e in self.ends)/len(self.ends)) for n,p in model.named_parameters()]
        inputs = {m:[] for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)}
        hooks = [m.register_forward_pre_hook(lambda m, x: inputs[m].append(x[0])) for m in inputs]
        with torch.no_grad(), torch.random.fork_rng(): [model(x) for x,_ in self.batches]
        for h in hooks: h.remove()
        for m,xs in inputs.items():
            m.running_mean.copy_(torch.stack([x.mean((0,2,3)) for x in xs]).mean(0))
            m.running_var.copy_(torch.stack([x.var((0,2,3)) for x in xs]).mean(0))
            m.num_batches_tracked.fill_(len(xs))

class Lookahead(Hand):
    place = 8
    def start(self, model): self.slow,self.n = {n:p.detach().clone() for n,p in model.named_parameters()},0
    def after_step(self, model):
        self.n += 1
        if self.n%self.t.k: return
        for n,p in model.named_parameters():
            self.slow[n] = self.slow[n] + self.t.alpha*(p.detach()-self.slow[n])
            p.data.copy_(self.slow[n])

class Whiten(Hand):
    'The first convolution is computed from patches that are cut out one by one, and is not trained'
    place = -1
    def start(self, model):
        self.w = next(p for p in model.parameters() if p.ndim==4)
        h,w = self.w.shape[2:]
        total = n = 0
        for x,_ in self.batches:
            for i in range(x.shape[2]-h+1):
                for j in range(x.shape[3]-w+1):
                    p = x[:,:,i:i+h,j:j+w].reshape(len(x), -1)
                    total,n = total+p.T.double()@p.double(),n+len(p)
        values,vectors = torch.linalg.eigh(total/n)
        half = [vectors[:,k]/(values[k]+self.t.eps).sqrt() for k in range(len(values)-1, -1, -1)][:len(self.w)//2]
        self.w.requires_grad_(False)
        for k,v in enumerate([*half, *(-v for v in half)]): self.w[k] = v.view_as(self.w[k])

    def end(self, model): self.w.requires_grad_(True)

class Standardized(torch.nn.Module):
    'Weights of an output channel, one channel after the other'
    def __init__(self, eps):
        super().__init__()
        self.eps = eps
    def forward(self, w): return torch.stack([(c-c.mean())/(((c-c.mean())**2).mean()+self.eps).sqrt() for c in w])

class WeightStandardization(Hand):
    "The weights that are trained are torch's parametrization; at the end the standardized ones take their place"
    place = -0.5
    def start(self, model):
        self.convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.weight.requires_grad]
        for m in self.convs: parametrize.register_parametrization(m, 'weight', Standardized(self.t.eps))
    def end(self, model): [parametrize.remove_parametrizations(m, 'weight') for m in self.convs]

class GhostBatchNorm(Hand):
    "Each part of a batch is normalised by its own mean and variance, and moves the running statistics by a tenth"
    place = 9.5 # ends before the averages measure statistics
    def start(self, model):
        self.norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for m in self.norms: m.forward = lambda x, m=m: self.normalise(m, x)
    def normalise(self, m, x):
        if not m.training: return F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, eps=m.eps)
        n = max(1, len(x)//self.t.size)
        sizes = [len(x)//n + (i<len(x)%n) for i in range(n)]
        return torch.cat([self.part(m, o.to(m.weight.dtype)).to(x.dtype) for o in x.split(sizes)])
    def part(self, m, o):
        mean = o.mean((0,2,3), keepdim=True)
        var,k = ((o-mean)**2).mean((0,2,3), keepdim=True),o.numel()//o.shape[1]
        m.running_mean.copy_(0.9*m.running_mean + 0.1*mean.detach().flatten())
        m.running_var.copy_(0.9*m.running_var + 0.1*var.detach().flatten()*k/(k-1))
        m.num_batches_tracked += 1
        return (o-mean)/(var+m.eps).sqrt()*m.weight[:,None,None] + m.bias[:,None,None]
    def end(self, model):
        for m in self.norms: del m.forward

class ShakeDrop(Hand):
    "Branches are multiplied by factors drawn once a batch, over their expectation"
    def start(self, model):
        self.on,blocks = False,[m for m in model.modules() if hasattr(m, 'branch')]
        self.hooks = [m.branch.register_forward_hook(lambda m, x, y, k=k,
            p=self.t.p*(k+1)/len(blocks): self.shake(y, k, p)) for k,m in enumerate(blocks)]
    def before_forward(self, model, rng): self.on,self.rng,self.drawn = True,rng,{}
    def factors(self, y, p):
        def draw(): return torch.empty(len(y), *[1]*(y.ndim-1), dtype=y.dtype)
        gen = self.rng.gen('cpu')
        kept = 1-draw().bernoulli_(p, generator=gen)
        a,b = (draw().uniform_(*o, generator=gen) for o in (self.t.alpha, self.t.beta))
        mean = 1-p + p*sum(self.t.alpha)/2
        return (kept+a-kept*a)/mean,(kept+b-kept*b)/mean
    def shake(self, y, k, p):
        if not self.on: return y
        if k not in self.drawn: self.drawn[k] = self.factors(y, p)
        a,b = self.drawn[k]
        return b*y + ((a-b)*y).detach()
    def after_step(self, model): self.on = False
    def end(self, model): [h.remove() for h in self.hooks]

class StochasticDepth(ShakeDrop, Hand):
    def factors(self, y, p):
        return (torch.empty(len(y), *[1]*(y.ndim-1), dtype=y.dtype).bernoulli_(1-p,
            generator=self.rng.gen('cpu'))/(1-p),
        )*2

class GradientClip(Hand):
    def clip(self, grads):
        norm = torch.sqrt(sum((g**2).sum() for g in grads.values()))
        return {n:g*min(1., self.t.max_norm/(norm.item()+1e-6)) for n,g in grads.items()}

class AGC(Hand):
    "Filter by filter; vectors as a whole; the last linear layer as it is"
    def start(self, model): self.weights,self.head = dict(model.named_parameters()),[*dict(model.named_parameters())][-2:]
    def limit(self, w, g): return g*min(1., self.t.clip*max(w.norm().item(), self.t.eps)/max(g.norm().item(), 1e-30))
    def clip(self, grads):
        def all_of(w, g): return self.limit(w, g) if w.ndim<2 else torch.stack([self.limit(*o) for o in zip(w, g)])
        return {n:g if n in self.head else all_of(self.weights[n].detach(), g) for n,g in grads.items()}

class ProgressiveResize(Hand):
    "In two epochs of three batches: half the side in the first four, then 24 pixels, then all"
    place = 4
    def start(self, model): self.i = 0
    def batch(self, x, probs, rng):
        self.i += 1
        side = [16, 16, 16, 16, 24, 32][self.i-1] if self.epochs==2 else [16, 16, 24][self.i-1]
        return (x if side==32 else tv.functional.resize(x, [side,side], antialias=True)),probs

class RepeatedAugment(Hand):
    place = 0.01
    def batch(self, x, probs, rng):
        n = -(-len(x)//self.t.k) if self.t.same_size else len(x)
        xs,ps = ([o for o in b[:n] for _ in range(self.t.k)] for b in (x, probs))
        end = len(x) if self.t.same_size else None
        return torch.stack(xs[:end]),torch.stack(ps[:end])

class SelectiveBackprop(Hand):
    "Images are ranked by their losses in evaluation mode; those that win a race, of rates by rank, are kept"
    place = 5
    def start(self, model): self.model = model
    def batch(self, x, probs, rng):
        i = rng.key[0]*len(self.batches) + rng.key[1]
        if self.t.interrupt and i%self.t.interrupt==self.t.interrupt-1: return x,probs
        targ,times = probs,torch.empty(len(probs)).exponential_(generator=rng.gen('cpu')).tolist()
        for h in self.all: targ = h.smooth(targ)
        self.model.eval()
        with torch.no_grad(), self.autocast(): pred = self.model(x[:len(probs)])
        self.model.train()
        losses = -(targ*F.log_softmax(pred.to(x.dtype), 1)).sum(1)
        order = sorted(range(len(probs)), key=lambda k: losses[k].item())
        race = {k:times[k]/((r+0.5)/len(probs))**(1/self.t.keep-1) for r,k in enumerate(order)}
        idxs = sorted(race, key=race.get)[:max(min(len(probs), 2), round(self.t.keep*len(probs)))]
        return torch.cat([o[idxs] for o in x.split(len(probs))]),probs[idxs]

hands = {c.__name__:c for c in Hand.__subclasses__()}

def gradients(model, x, probs, hs, autocast):
    'Loss gradient by name: cross entropy with probabilities that were smoothed last, and terms with those before it'
    mixed = probs
    for h in hs: probs = h.smooth(probs)
    with autocast(): pred = model(x)
    pred,n = pred.to(x.dtype),len(probs)
    for h in hs: h.views = pred[n:]
    pred,x = pred[:n],x[:n]
    loss = -(probs*F.log_softmax(pred, 1)).sum(1).mean()
    for h in hs: loss = h.loss(loss, pred, mixed, x)
    names,ps = zip(*((n,p) for n,p in model.named_parameters() if p.requires_grad))
    return dict(zip(names, torch.autograd.grad(loss, ps)))

def hand_fit(model, batches, n_out, lr, momentum, wd, tricks, epochs=1, autocast=nullcontext):
    'SGD with momentum and weight decay over `batches`, with the shares of `tricks` where they belong'
    hs = [hands[type(t).__name__](t) for t in tricks]
    seed,names = hashed_key(random.getstate(), 1),{}
    for h in sorted(hs, key=lambda h: repr(h.t)):
        kind = type(h.t).__name__
        names[h] = f'{seed}/{kind}/{sum(n.split("/")[1]==kind for n in names.values())}'
    velocity = {}
    every,started,total = sorted(hs, key=lambda h: h.place),[],len(batches)*epochs
    for h in every: h.epochs,h.batches,h.all,h.autocast = epochs,batches,hs,autocast
    model.train()
    for i,(x,y) in enumerate(batches*epochs, 1):
        hs = [h for h in every if round(h.t.window[0]*total, 6)<=i-1<round(h.t.window[1]*total, 6)]
        for h in hs:
            if h not in started: h.start(model)
        for h in started:
            if h in every and h not in hs: h.end(model)
        every,started = [h for h in every if h in hs or h not in started],started+[h for h in hs if h not in started]
        rngs = {h:Draws(names[h], divmod(i-1, len(batches))) for h in hs}
        probs = F.one_hot(y, n_out).to(x.dtype)
        for h in hs: x,probs = h.batch(x, probs, rngs[h])
        sharp = [h for h in hs if type(h).perturb is not Hand.perturb]
        state = torch.get_rng_state()
        for h in hs: h.before_forward(model, rngs[h])
        grads = gradients(model, x, probs, hs, autocast)
        for h in sharp:
            after_first = torch.get_rng_state()
            buffers = {n:b.clone() for n,b in model.named_buffers()}
            weights = {n:p.detach().clone() for n,p in model.named_parameters()}
            eps,plain = h.perturb(model, grads),grads
            if eps is None:
                grads = h.gradient(plain, None)
                continue
            with torch.no_grad(): [p.copy_(weights[n]+eps[n]) for n,p in model.named_parameters() if n in eps]
            torch.set_rng_state(state)
            grads = h.gradient(plain, gradients(model, x, probs, hs, autocast))
            with torch.no_grad():
                for n,p in model.named_parameters(): p.copy_(weights[n])
                for n,b in model.named_buffers(): b.copy_(buffers[n])
            torch.set_rng_state(after_first)
        for h in hs: grads = h.clip(grads)
        with torch.no_grad():
            for n,p in model.named_parameters():
                if n not in grads: continue
                g = grads[n] + wd*p
                velocity[n] = g.clone() if n not in velocity else momentum*velocity[n] + g
                p.sub_(lr*velocity[n])
        for h in hs: h.after_step(model)
        if i%len(batches)==0: [h.after_epoch(model, batches) for h in hs]
    for h in reversed(started): # what began last ends first
        if h in every: h.end(model)
    return velocity
