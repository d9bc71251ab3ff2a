"Data in memory, and images of other sizes: arrays, and the data set objects of torchvision, torch, fastai and Hugging Face."
import io, pickle, random, warnings
import numpy as np, pytest, torch, torchvision
from fastai.vision.all import Image, load_learner, mkdir
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision import transforms as T
from cifar_fastai.core import UserError
from cifar_fastai.data.sources import *
from cifar_fastai.data.datasets import *
from cifar_fastai.data.loaders import *
from cifar_fastai.learner import cifar_learner
from test_data import at_home # chkstyle: ignore
from test_data import binary_layout, names10, python_layout, some, write
from test_data_faults import refused
from test_data_sets import svhn_files
from test_layouts import folders, good_npz, npz

rng = np.random.default_rng(9)
x,y = rng.integers(0, 256, (24,32,32,3), np.uint8),np.arange(24)%3
xt,yt = torch.from_numpy(x),torch.from_numpy(y)
test = x[:6],y[:6]

def exact(im, x=x, y=y, vocab=('0','1','2')):
    assert np.array_equal(im.train_x, x) and im.train_y.tolist()==list(y) and im.vocab==list(vocab) and not im.note
    assert np.array_equal(im.test_x, x[:6]) and im.test_y.tolist()==list(y[:6])

@pytest.mark.parametrize('a,b', [(x,y), (xt,yt), (xt.permute(0,3,1,2),yt.int()), (x/np.float32(255),y.tolist()), (x/255,tuple(y.tolist())),
    (xt.permute(0,3,1,2)/255,yt[:,None]), ((xt/255).half(),yt), (x.astype(np.int64),y.astype(np.uint8))], ids=lambda o: f'{type(o).__name__} {getattr(o, "dtype", "")}')
def test_arrays(a, b):
    "In every form the same images; as a pair, a dict, or with a holdout"
    exact(object_images(((a,b), (a[:6],b[:6]))))
    exact(object_images(dict(train=(a,b), test=(a[:6],b[:6]))))
    im = object_images((a,b))
    assert (len(im.train_y),len(im.test_y))==(21,3) and 'held out for testing' in im.note
    im = object_images(dict(train=(a,b), val=(a[:6],b[:6]), test=(a[:3],b[:3])))
    assert len(im.valid_y)==6 and len(im.test_y)==3

def test_the_data_are_copied():
    "A change of the array afterwards changes nothing, and the other way around"
    a = x.copy()
    dls = cifar_dls(((a,y), test), device='cpu')
    before = dls.train_ds.x.clone()
    a[:] = 0
    assert torch.equal(dls.train_ds.x, before)

def test_grey_and_transparent_arrays():
    grey = rng.integers(0, 256, (24,32,32), np.uint8)
    for o in (grey, grey[...,None], grey[:,None]): assert np.array_equal(object_images(((o,y), test)).train_x, np.repeat(grey[...,None], 3, 3))
    rgba = np.concatenate([x, np.full((24,32,32,1), 255, np.uint8)], 3)
    assert np.array_equal(object_images(((rgba,y), test)).train_x, x)

def fake_cifar10(tmp_path, monkeypatch, **kw):
    monkeypatch.setattr(torchvision.datasets.cifar, 'check_integrity', lambda *a, **k: True)
    write(some(python_layout(), 'cifar-10-batches-py'), tmp_path/'tv')
    return [torchvision.datasets.CIFAR10(tmp_path/'tv', train=o, **kw) for o in (True,False)]

@pytest.mark.parametrize('tfm', [None, T.ToTensor(), T.Compose([T.PILToTensor()])])
def test_torchvision(tmp_path, monkeypatch, tfm):
    "The same images, labels and class names as from its files; transforms that lose nothing do not matter"
    train,test = fake_cifar10(tmp_path, monkeypatch, transform=tfm)
    im,ref = object_images((train,test)),read_images(tmp_path/'tv')
    assert all(torch.equal(a, b) for a,b in zip(im[:4], ref[:4])) and im.vocab==names10 and im.digest==image_digest(ref)
    dls = cifar_dls(dict(train=train, test=test), bs=10, device='cpu')
    assert dls.vocab==names10 and len(dls.valid_ds)==20 and dls.source_digest==im.digest
    part = object_images((Subset(train, range(50)), test))
    assert part.vocab==names10 and torch.equal(part.train_x, ref.train_x[:50])

def test_image_folder_and_tensors(tmp_path):
    root = write(dict(d=folders('train/', 'test/', n=3)), tmp_path/'x')/'d'
    im = object_images(tuple(torchvision.datasets.ImageFolder(root/o) for o in ('train','test')))
    ref = read_images(root)
    assert torch.equal(im.train_x, ref.train_x) and torch.equal(im.test_y, ref.test_y) and im.vocab==ref.vocab
    exact(object_images((TensorDataset(xt.permute(0,3,1,2), yt), TensorDataset(xt[:6].permute(0,3,1,2)/255, yt[:6]))))
    exact(object_images(([*zip(x, y.tolist())], [*zip(x[:6], y[:6])])))

def test_labels_that_are_names():
    names = np.array(['dog','ant','cat'])
    for b in (names[y], names[y].tolist(), names[y].astype(object)):
        im = object_images(((x,b), (x[:6],b[:6])))
        assert im.vocab==['ant','cat','dog'] and im.train_y.tolist()==[[2,0,1][i] for i in y]
    with refused("has the label 'cow', which no training image has"): object_images(((x,names[y]), (x[:1],['cow'])))

def test_images_of_different_sizes():
    pil = [Image.fromarray(o).resize((20+i,40)) for i,o in enumerate(x)]
    im = object_images([*zip(pil, y.tolist())], size=24)
    assert im.train_x.shape==(21,24,24,3)
    got = {o.numpy().tobytes() for o in torch.cat([im.train_x, im.test_x])}
    assert got=={np.asarray(o.resize((24,24), Image.BILINEAR)).tobytes() for o in pil}

def test_hugging_face():
    datasets = pytest.importorskip('datasets')
    def make(x, y, img='img', label='label'):
        ft = datasets.Features({img:datasets.Image(), label:datasets.ClassLabel(names=['b','a','c'])})
        return datasets.Dataset.from_dict({img:[Image.fromarray(o) for o in x], label:list(y)}, features=ft)
    train,valid = make(x, y),make(*test)
    exact(object_images((train,valid)), vocab='bac')
    exact(object_images(datasets.DatasetDict(train=train, test=valid)), vocab='bac')
    im = object_images(datasets.DatasetDict(train=train, validation=valid, test=valid))
    assert len(im.valid_y)==6
    assert len(cifar_dls(make(x, y, 'image', 'fine_label'), device='cpu').train_ds)==21
    with refused('must have img or image, and label'): cifar_dls(make(x, y, label='target'))

class Columns(Dataset):
    "Items as Hugging Face has them, without its library"
    def __init__(self, x, y): self.x,self.y = x,y
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return dict(image=Image.fromarray(self.x[i]), fine_label=int(self.y[i]), coarse_label=0)

def test_items_with_names(): exact(object_images((Columns(x, y), Columns(*test))))

class Noisy(Dataset):
    def __len__(self): return 24
    def __getitem__(self, i): return torch.randint(0, 256, (3,32,32), dtype=torch.uint8),i%3

@pytest.mark.parametrize('data,says', [(x,'a tuple of images and labels'), (xt,'a tuple of images and labels'), ((x,y,x,y),'of type tuple|an image and a label'),
    ((x,y[:5]),'labels are 5 for 24 images'), ((x,y-1),'must start from 0'), ((x,np.eye(24)),'argmax'), ((x,y+.5),'one integer per image'), ((x,None),'one integer per image'),
    ((x-128.,y),'before normalisation'), ((x/300,y),'multiply by 255, round, and convert'), ((x[:0],y[:0]),'shape'), ((x.reshape(24,-1)[:,None],y),'shape'),
    ((x,y*0),'one class'), (((x,y), (x[:0],y[:0])),'shape'), (((x,y), 3),'of type int'), (((x,y), DataLoader([1])),'use the dataset of a DataLoader'),
    (dict(train=(x,y), tset=test),'they must be train, test and valid'), (dict(test=test),'must be train'), (dict(train=(x,y), val=test, valid=test),'mean the same'),
    ([1,2],'an image and a label'), (['ab','cd'],'an image and a label'), ([('a.png',1), ('b.png',0)],'must be a PIL image, array or tensor'), ([(x[0],0), x[1]],'an image and a label'),
    (Noisy(),'change when they are read again: remove its random transforms'), ([(x[0],0), (x[1],'a')]*2,'labels'), ([(xt[0]*1.,0), (x[1],1)]*3,'image 0 are'),
    (dict(train=[]),'is empty'), ({1:2},'must be train'), (((x,y), ([],[])),'of type|must be an image|empty'), (Columns(x, y-1),'start from 0'),
    ([dict(picture=1, label=1)]*3,'they must have img or image')], ids=lambda o: o if isinstance(o, str) else type(o).__name__)
def test_bad_objects(data, says):
    "One sentence: what was wrong, what would be right"
    with refused(says): cifar_dls(data, device='cpu')

@pytest.mark.parametrize('data', [3, 2.5, None, True, b'x', [], {}, (), object(), print, np.array(3),
    torch.tensor(1.), {'a'}, range(0), iter([1])], ids=lambda o: type(o).__name__)
def test_no_objects(data):
    with refused(): cifar_dls(data)

def test_in_a_learner(tmp_path):
    "Data are as good as their DataLoaders; they are not pickled with an exported Learner"
    data = (x,y),test
    learn = cifar_learner('toynet_s1_k3', data, lr=0.01, path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.dls.c==3 and len(learn.dls.valid_ds)==6
    name,_,_ = learn.predict(x[0])
    assert name in '012' and len(pickle.dumps(learn.dls.new_empty()))<50_000
    assert cifar_learner('toynet_s1_k3', 'digits').dls.c==10
    for bad in (3, [], DataLoader([1])):
        with refused(): cifar_learner('toynet_s1_k3', bad)

# Size

def sources(tmp_path):
    for o in (python_layout(), binary_layout(), dict(svhn=svhn_files(False)), dict(d=folders('train/', 'test/', n=2)), dict(d={'a.npz':npz(**good_npz)})):
        yield write(dict([next(iter(o.items()))]), mkdir(tmp_path/f'{len(list(tmp_path.iterdir()))}'))

def test_size_in_every_layout(tmp_path):
    "As PIL resizes what is read at 32x32, which these files have"
    for root in sources(tmp_path):
        a,b = read_images(root),read_images(root, size=48)
        assert b.train_x.dtype==torch.uint8 and b.train_x.shape[1:]==(48,48,3)
        for p,q in zip(a.test_x[:3], b.test_x): assert np.array_equal(np.asarray(Image.fromarray(p.numpy()).resize((48,48), Image.BILINEAR)), q)
        assert torch.equal(a.train_y, b.train_y) and len(read_images(root, size=8).train_y)==len(a.train_y)

def test_larger_images_are_decoded_at_their_size(tmp_path):
    "Not by way of 32x32"
    files = folders('train/', 'test/', n=2, size=(64,64,3))
    root = write(dict(d=files), tmp_path/'x')
    im = cached_images(root, size=64)
    assert np.array_equal(im.train_x[0], np.asarray(Image.open(io.BytesIO(files['train/a/0.png']))))
    small = cached_images(root)
    assert small.train_x.shape[1:]==(32,32,3) and torch.equal(cached_images(root, size=64).train_x, im.train_x)
    assert len(list((tmp_path/'cache').iterdir()))==2 and small.digest!=im.digest

def test_size_of_batches_and_predictions(tmp_path):
    dls = cifar_dls('digits', bs=8, size=48, fraction=0.02, device='cpu')
    assert dls.one_batch()[0].shape==(8,3,48,48)
    learn = cifar_learner('resnet20', dls, lr=0.01, path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert next(iter(learn.dls.test_dl([np.zeros((20,20), np.uint8)])))[0].shape==(1,3,48,48)
    learn.predict(np.zeros((20,20,3), np.uint8))
    learn.export('m.pkl')
    assert next(iter(load_learner(tmp_path/'m.pkl').dls.test_dl([np.zeros((20,20), np.uint8)])))[0].shape==(1,3,48,48)

@pytest.mark.parametrize('size', [0, 7, 513, 32.5, '64', None, (64,64)])
def test_bad_sizes(size):
    with refused(r'size is .*integer in \[8, 512\]'): cifar_dls('digits', size=size)

@pytest.mark.parametrize('arch,size', [('lenet',48), ('vision_transformer',64), ('swin_t',48), ('resnet9',64), ('vgg16',16)])
def test_backbones_of_one_size(arch, size):
    dls = cifar_dls('digits', size=size, device='cpu')
    with refused(f'{arch} does not take images of {size}x{size} .*use size=32'): cifar_learner(arch, dls)
    cifar_learner('resnet20', dls)

# Anything in memory

def images(n): return rng.integers(0, 256, (n,8,8,3), np.uint8)

def anything(rand):
    "Images and labels of any type and shape, often the right ones"
    if rand.random()<0.4: return images(12),np.arange(12)%2
    n = rand.choice([0,1,2,12,12,12])
    shape = rand.choice([(n,8,8,3), (n,3,8,8), (n,8,8), (n,8,8,3), (n,8,8,2), (n,192), (n,1,8), (n,8,8,8), (n,)])
    a = rng.integers(0, 256, shape)
    dtype = rand.choice([np.uint8,np.uint8,np.uint8,np.int64,np.float32,np.float64,np.uint16,bool,complex,object])
    a = (a/255).astype(dtype) if dtype in (np.float32,np.float64) and rand.random()<0.6 else a.astype(dtype)
    if dtype in (np.float32,np.float64) and a.size and rand.random()<0.3: a.flat[0] = rand.choice([np.nan,np.inf,-1,0.123])
    i = np.arange(n)
    b = rand.choice([i%2, i%2, [*'ab']*(n//2), i-1, np.ones(n), (i%2)[:,None], np.arange(n+1), None, np.eye(max(n, 2)), [None]*n])
    if rand.random()<0.3 and dtype not in (object,np.uint16): a = torch.from_numpy(a)
    return [*zip(a, b)] if rand.random()<0.2 and b is not None and a.ndim else (a,b)

@pytest.mark.parametrize('seed', range(4))
def test_arrays_of_anything(seed):
    "Valid images and labels, or one sentence"
    rand,ends = random.Random(seed),dict(images=0, refused=0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(150):
            data = anything(rand)
            more = [(data,anything(rand)), dict(train=data, test=data), dict(train=data, valid=anything(rand)), dict(test=data)]
            if rand.random()<0.4: data = rand.choice(more)
            try: dls = cifar_dls(data, bs=4, size=rand.choice([8,16]), device='cpu')
            except UserError as e:
                ends['refused'] += 1
                assert str(e).isprintable() and str(e)[-1] in '.?'
            else:
                ends['images'] += 1
                for dl in dls.loaders: assert dl.one_batch()[0].isfinite().all() and dl.dataset.x.dtype==torch.uint8
    assert ends['refused']>20 and ends['images']>5
