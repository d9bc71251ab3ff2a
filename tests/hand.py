"""Training loops written out by hand, which the tricks are compared with.

A `Hand` is one trick's share of such a loop, in plain PyTorch and without the library's functions. `hand_fit` is the loop: it
shows where in a step each share belongs. Random numbers are drawn from streams seeded as a fit seeds them, in the stated order."""
import random
from contextlib import nullcontext
import torch,torch.nn.functional as F
from cifar_fastai.trick import Stream

class Hand:
    'What a trick does in a loop written by hand; the default does nothing'
    place = 0 # of `batch` among the tricks
    def __init__(self, trick): self.t = trick
    def start(self, model): pass
    def batch(self, x, probs, rng): return x,probs
    def smooth(self, probs): return probs
    def loss(self, loss, pred, probs, x): return loss
    def perturb(self, model, grads): return None
    def clip(self, grads): return grads
    def after_step(self, model): pass
    def before_forward(self, model, rng): pass

class MixUp(Hand):
    place = 3
    def batch(self, x, probs, rng):
        perm = torch.randperm(len(x), generator=rng.gen(x.device))
        lam = rng.py.betavariate(self.t.alpha, self.t.alpha)
        return lam*x + (1-lam)*x[perm], lam*probs + (1-lam)*probs[perm]

class LabelSmoothing(Hand):
    def smooth(self, probs): return probs*(1-self.t.eps) + self.t.eps/probs.shape[1]

class SAM(Hand):
    def perturb(self, model, grads):
        norm = torch.sqrt(sum((g**2).sum() for g in grads.values()))
        return {n:self.t.rho*g/norm for n,g in grads.items()}

class ASAM(Hand):
    def perturb(self, model, grads):
        ps = dict(model.named_parameters())
        t = {n:ps[n].detach().abs()+self.t.eta if 'weight' in n else torch.ones_like(g) for n,g in grads.items()}
        norm = torch.sqrt(sum(((t[n]*g)**2).sum() for n,g in grads.items()))
        return {n:self.t.rho*t[n]**2*g/norm for n,g in grads.items()}

hands = {c.__name__:c for c in Hand.__subclasses__()}

def gradients(model, x, probs, hs, autocast):
    'Loss gradient by name, for probabilities that were smoothed last'
    for h in hs: probs = h.smooth(probs)
    with autocast(): pred = model(x)
    pred = pred.to(x.dtype)
    loss = -(probs*F.log_softmax(pred, 1)).sum(1).mean()
    for h in hs: loss = h.loss(loss, pred, probs, x)
    names,ps = zip(*((n,p) for n,p in model.named_parameters() if p.requires_grad))
    return dict(zip(names, torch.autograd.grad(loss, ps)))

def hand_fit(model, batches, n_out, lr, momentum, wd, tricks, epochs=1, autocast=nullcontext):
    'SGD with momentum and weight decay over `batches`, with the shares of `tricks` where they belong'
    hs = [hands[type(t).__name__](t) for t in tricks]
    seed = random.getrandbits(64)
    rngs = {h:Stream(f'{seed} {h.t!r}') for h in hs}
    velocity = {}
    for h in hs: h.start(model)
    model.train()
    for x,y in [b for _ in range(epochs) for b in batches]:
        probs = F.one_hot(y, n_out).to(x.dtype)
        for h in sorted(hs, key=lambda h: h.place): x,probs = h.batch(x, probs, rngs[h])
        sharp = [h for h in hs if type(h).perturb is not Hand.perturb]
        state = torch.get_rng_state()
        for h in hs: h.before_forward(model, rngs[h])
        grads = gradients(model, x, probs, hs, autocast)
        for h in sharp:
            after_first = torch.get_rng_state()
            buffers = {n:b.clone() for n,b in model.named_buffers()}
            weights = {n:p.detach().clone() for n,p in model.named_parameters()}
            eps = h.perturb(model, grads)
            with torch.no_grad(): [p.copy_(weights[n]+eps[n]) for n,p in model.named_parameters() if n in eps]
            torch.set_rng_state(state)
            grads = gradients(model, x, probs, hs, autocast)
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
    return velocity
