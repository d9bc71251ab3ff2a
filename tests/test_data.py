"Data: every layout against torchvision's reader, crop and flip against torchvision's, fastai's whole interface, and bad input."
import io, os, pickle, struct, subprocess, sys, tarfile, threading, zipfile
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import numpy as np, pytest, torch, torchvision
import torchvision.transforms.functional as TF
from fastai.vision.all import ( # chkstyle: ignore
    F, Image, ItemTransform, Learner, PILImage, Interpretation, ClassificationInterpretation, CrossEntropyLossFlat, Tensor,
    TensorCategory, TensorImage, accuracy, first, mkdir, nn, noop, plt, random, set_seed, tensor)
from cifar_fastai.core import UserError
from cifar_fastai.data.sources import *
from cifar_fastai.data.datasets import *
from cifar_fastai.data.loaders import *
from cifar_fastai.rng import RandomStream

torch.set_num_threads(1)
rng = np.random.default_rng(0)

@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    "A cache and fastai folders of our own, nothing in the environment"
    monkeypatch.setenv('CIFAR_FASTAI_CACHE', str(tmp_path/'cache'))
    monkeypatch.delenv('CIFAR_FASTAI_DATA', raising=False)
    monkeypatch.setattr('cifar_fastai.data.datasets.fastai_path', lambda o: tmp_path/'fastai'/o)

# Layouts, written here as their authors describe them

def batches(n_out, names, n=20):
    "Random images and labels under each name"
    return {o: (rng.integers(0, 256, (n,3072), np.uint8), rng.integers(0, n_out, n).tolist()) for o in names}

b10,b100 = batches(10, [*(f'data_batch_{i}' for i in range(1,6)), 'test_batch']),batches(100, ['train','test'])
names10,names100 = cifar10_vocab,[f'class_{i:02}' for i in range(100)]

def python_layout(protocol=2):
    "Folder -> name -> content of both official Python versions"
    ten = {k: pickle.dumps(dict(data=x, labels=y), protocol) for k,(x,y) in b10.items()}
    hundred = {k: pickle.dumps(dict(data=x, fine_labels=y, coarse_labels=[0]*len(y)), protocol)
        for k,(x,y) in b100.items()}
    return {'cifar-10-batches-py': ten | {'batches.meta': pickle.dumps(dict(label_names=names10), protocol)},
        'cifar-100-python': hundred | dict(meta=pickle.dumps(dict(fine_label_names=names100), protocol))}

def binary_layout():
    def records(x, y, coarse): return b''.join(bytes([0]*coarse+[l])+o.tobytes() for o,l in zip(x, y))
    return {'cifar-10-batches-bin': {f'{k}.bin': records(*v, 0) for k,v in b10.items()}
        | {'batches.meta.txt': '\n'.join(names10).encode()+b'\n\n'},
        'cifar-100-binary': {f'{k}.bin': records(*v, 1) for k,v in b100.items()}
        | {'fine_label_names.txt': '\n'.join(names100).encode()}}

def png(x):
    f = io.BytesIO()
    Image.fromarray(x).save(f, 'png')
    return f.getvalue()

def image_layout(vocab=tuple(names10), between=''):
    "`train/<class>/` and `test/<class>/`, two images each"
    return {'cifar10': {f'{s}/{between}{c}/{i}.png': png(rng.integers(0, 256, (32,32,3), np.uint8))
        for s in ('train','test') for c in vocab for i in range(2)}}

def write(files, to):
    "Write `{folder: {name: content}}` below `to`, a folder, or into an archive of that name"
    flat = {f'{d}/{k}': v for d,o in files.items() for k,v in o.items()}
    if to.suffix=='.zip':
        with zipfile.ZipFile(to, 'w') as z:
            for k,v in flat.items(): z.writestr(k, v)
    elif to.suffix in ('.tar','.tgz','.gz'):
        with tarfile.open(to, 'w' if to.suffix=='.tar' else 'w:gz') as t:
            for k,v in flat.items():
                m = tarfile.TarInfo(k)
                m.size = len(v)
                t.addfile(m, io.BytesIO(v))
    else:
        for k,v in flat.items(): mkdir((to/k).parent, parents=True, exist_ok=True).joinpath(Path(k).name).write_bytes(v)
    return to

def some(layout, folder): return {folder: layout[folder]}

@pytest.mark.parametrize('suffix', ['','.tgz','.tar.gz','.tar','.zip'])
@pytest.mark.parametrize('version', ['python','binary'])
@pytest.mark.parametrize('name,folder', [('cifar10',0), ('cifar100',1)])
def test_official_layouts(tmp_path, monkeypatch, suffix, version, name, folder):
    "In a folder and in every archive the same as torchvision reads from the Python version"
    monkeypatch.setattr(torchvision.datasets.cifar, 'check_integrity', lambda *a, **k: True)
    py = python_layout()
    write(some(py, list(py)[folder]), tmp_path/'tv')
    cls = (torchvision.datasets.CIFAR10, torchvision.datasets.CIFAR100)[folder]
    layout = py if version=='python' else binary_layout()
    root = write(some(layout, list(layout)[folder]), tmp_path/f'mine{suffix}')
    dls = cifar_dls(name, root=root, device='cpu')
    for dl,train in zip(dls.loaders, (True,False)):
        ref = cls(tmp_path/'tv', train=train)
        assert torch.equal(dl.dataset.x.permute(0,2,3,1),
            torch.from_numpy(ref.data)) and dl.dataset.y.tolist()==ref.targets
        assert list(dl.vocab)==ref.classes and dls.c==len(ref.classes)

@pytest.mark.parametrize('protocol', range(6))
def test_every_pickle_protocol(tmp_path, protocol):
    write(some(python_layout(protocol), 'cifar-10-batches-py'), tmp_path)
    im = read_images(tmp_path)
    assert im.train_x.shape==(100,32,32,
        3) and im.train_y.tolist()==[l for k,(_,y) in b10.items() if k!='test_batch' for l in y]

def python2_pickle(x, y):
    "As Python 2 and an old numpy wrote the official batches: byte strings, `numpy.core`"
    def s(o): return b'U'+bytes([len(o)])+o
    dtype = b'cnumpy\ndtype\n('+s(b'u1')+b'K\0K\1tR(K\3'+s(b'|')+b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb'
    start = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0t'+s(b'b')+b'tR'
    array = start+b'(K\1(J'+struct.pack('<i', len(x))+b'J'+struct.pack('<i',
        x.shape[1])+b't'+dtype+b'\x89T'+struct.pack('<i', x.size)+x.tobytes()+b'tb'
    return b'\x80\x02}('+s(b'data')+array+s(b'labels')+b'('+b''.join(b'K'+bytes([o]) for o in y)+b'lu.'

def test_python2_pickles(tmp_path):
    write({'x': {k: python2_pickle(*v) for k,v in b10.items()}}, tmp_path)
    im = read_images(tmp_path)
    assert im.vocab==names10 and im.test_y.tolist()==b10['test_batch'][1]
    assert np.array_equal(im.test_x.permute(0,3,1,2).reshape(20,-1), b10['test_batch'][0])

@pytest.mark.parametrize('suffix', ['','.tgz','.zip'])
@pytest.mark.parametrize('between', ['','coarse/'])
def test_image_layout(tmp_path, suffix, between):
    "The same as torchvision's ImageFolder reads; a level of folders between changes nothing"
    layout = image_layout(('a','train','test'), between)
    root = write(layout, tmp_path/f'mine{suffix}')
    write(layout, tmp_path/'tv')
    dls = cifar_dls(root, device='cpu')
    for dl,split in zip(dls.loaders, ('train','test')):
        ref = torchvision.datasets.ImageFolder(tmp_path/'tv/cifar10'/split/between)
        got = {(o.numpy().tobytes(),dl.vocab[l]) for o,l in zip(dl.dataset.x.permute(0,2,3,1), dl.dataset.y)}
        assert got=={(np.asarray(o).tobytes(),ref.classes[l]) for o,l in ref} and len(got)==6
    assert dls.vocab==['a','test','train']

def test_other_sizes_and_hidden_files(tmp_path):
    big = rng.integers(0, 256, (48,64), np.uint8)
    layout = dict(d={f'{s}/c/a.png': png(big) for s in ('train','test')}
        | {'train/c/._a.png': b'not an image', 'train/c/notes.txt': b'x'})
    im = read_images(write(layout, tmp_path/'x.zip'))
    assert np.array_equal(im.train_x[0],
        np.asarray(Image.fromarray(big).convert('RGB').resize((32,32), Image.BILINEAR)))

@pytest.fixture(scope='module')
def real_cifar10():
    path = Path(os.environ.get('CIFAR_FASTAI_DATA') or Path(__file__).parents[2]/'shared/data/cifar10.tgz')
    if not path.exists():
        pytest.skip('no real CIFAR-10 images: neither CIFAR_FASTAI_DATA nor ../shared/data/cifar10.tgz is there')
    return path

@pytest.mark.slow
def test_real_cifar10(real_cifar10):
    dls = cifar_dls('cifar10', root=real_cifar10)
    assert dls.vocab==cifar10_vocab and dls.train_ds.y.bincount().tolist()==[5000]*10
    mean,std = channel_stats(dls.train_ds.x.cpu())
    assert np.allclose(mean, (0.4914,0.4822,0.4465), atol=2e-3) and np.allclose(std, (0.247,0.2435,0.2616), atol=3e-3)

# Where images are found

def test_locate(tmp_path, monkeypatch):
    layout = python_layout()
    fastai = tmp_path/'fastai/data'
    write(layout, fastai)
    assert find_data(datasets['cifar10']).name=='cifar-10-batches-py' and find_data(datasets['cifar100']).name=='cifar-100-python'
    mine = write(image_layout(), tmp_path/'cifar10.tgz')
    monkeypatch.setenv('CIFAR_FASTAI_DATA', str(mine))
    assert find_data(datasets['cifar10'])==mine
    assert find_data(datasets['cifar100']).parent==fastai # the archive says that it is another data set
    assert find_data(datasets['cifar10'], fastai).parent==fastai # root wins
    inside = fastai/'cifar-10-batches-py'
    assert find_data(datasets['cifar10'], inside)==inside
    assert find_data(datasets['cifar10'], mkdir(tmp_path/'empty')) is None
    with pytest.raises(UserError, match='root is .*nowhere'): find_data(datasets['cifar10'], tmp_path/'nowhere')
    monkeypatch.setenv('CIFAR_FASTAI_DATA', str(tmp_path/'gone'))
    with pytest.raises(UserError, match='CIFAR_FASTAI_DATA is .*gone.*existing folder or archive'): cifar_dls()

def test_wrong_number_of_classes(tmp_path):
    root = write(image_layout(), tmp_path/'mine.zip')
    with pytest.raises(UserError, match='10 classes and cifar100 has 100'): cifar_dls('cifar100', root=root)

# Cache

def test_cache(tmp_path, monkeypatch):
    root = write(image_layout(('a','b')), tmp_path/'x')
    reads = []
    read = read_images
    monkeypatch.setattr('cifar_fastai.data.sources.read_images', lambda p, *a: reads.append(p) or read(p, *a))
    def load(): return cached_images(root)
    a,b = load(),load()
    assert len(reads)==1 and all(torch.equal(a[i], b[i]) for i in range(4)) and a.vocab==b.vocab
    fn, = (tmp_path/'cache').iterdir()
    for bad in (b'', b'x'*100, fn.read_bytes()[:-100], pickle.dumps(a.vocab)):
        fn.write_bytes(bad)
        assert torch.equal(load().train_x, a.train_x) and torch.equal(load().train_x, a.train_x)
    assert len(reads)==5
    (root/'cifar10/train/a/new.png').write_bytes(png(np.zeros((32,32,3), np.uint8)))
    assert len(load().train_x)==5 and len(reads)==6
    assert [o.name for o in (tmp_path/'cache').iterdir()]==[fn.name]

def test_no_place_for_a_cache(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('CIFAR_FASTAI_CACHE', str(tmp_path/'file/cache'))
    assert len(cached_images(write(image_layout(('a','b')), tmp_path/'x')).train_x)==4

# Bad input: one sentence, nothing left

class Evil:
    def __reduce__(self): return os.system, ('touch evil',)

def evil_archives():
    img = png(np.zeros((32,32,3), np.uint8))
    good = {f'{s}/c/{i}.png': img for s in ('train','test') for i in range(2)}
    py,bn = python_layout()['cifar-10-batches-py'],binary_layout()['cifar-10-batches-bin']
    yield 'outside', {'..': good}, 'a path outside the archive'
    yield 'absolute', {'/tmp/x': good}, 'a path outside the archive'
    yield 'pickle', dict(d=py
        | dict(test_batch=pickle.dumps(Evil()))), r'test_batch is refused: .* numpy arrays only, .*\.system'
    yield 'eval', dict(d=py | dict(test_batch=b"cnumpy\nload\n(S'x'\ntR.")), 'references numpy.load'
    yield 'cut pickle', dict(d=py | dict(test_batch=py['test_batch'][:-50])), 'test_batch is damaged'
    yield 'other pickle', dict(d=py | dict(test_batch=pickle.dumps([1]))), 'holds no images and labels'
    yield 'labels', dict(d=py
        | dict(test_batch=pickle.dumps(dict(data=b10['test_batch'][0],
            labels=[0,10]*10)))), r'Labels in .* range from 0 to 10: with 10 classes they must be in \[0, 9\]'
    yield 'no array', dict(d=py
        | dict(test_batch=pickle.dumps(dict(data='hello', labels=[1])))), 'test_batch holds no images and labels'
    yield 'few labels', dict(d=py
        | dict(test_batch=pickle.dumps(dict(data=b10['test_batch'][0], labels=[1])))), 'test_batch in .* is damaged'
    yield 'no batch', dict(d={k:v for k,v in py.items() if k!='data_batch_3'}), 'lacks data_batch_3'
    yield 'cut binary', dict(d=bn | {'test_batch.bin': bn['test_batch.bin'][:-1]}), 'not a whole number of images'
    yield 'no image', dict(d=good | {'train/c/bad.jpg': b'hello'}), r'train/c/bad.jpg in .* is not a readable image'
    yield 'cut image', dict(d=good | {'train/c/bad.png': img[:60]}), r'train/c/bad.png in .* is not a readable image'
    yield 'no classes', dict(d={'train/1.png': img,
        'test/1.png': img}), r'the expected layout is train/<class>/\* and test/<class>/\*'
    yield 'no test', dict(d={'train/c/1.png': img}), 'has one class, c, and no test images: the expected layout'
    yield 'new class', dict(d=good | {'test/e/1.png': img}), 'test images but no training images of e'
    yield 'nothing', dict(d={'readme.txt': b'hello'}), 'neither CIFAR batches nor class folders'

@pytest.mark.parametrize('suffix', ['.tgz','.zip','.tar'])
@pytest.mark.parametrize('what,files,message', evil_archives(),
    ids=lambda o: o if isinstance(o, str) and len(o)<13 else '-')
def test_bad_archives(tmp_path, monkeypatch, suffix, what, files, message):
    mkdir(tmp_path/'cwd')
    monkeypatch.chdir(tmp_path/'cwd')
    path = write(files, tmp_path/f'x{suffix}')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UserError, match=message) as e: cached_images(path)
    assert '\n' not in str(e.value)
    assert sorted(tmp_path.rglob('*'))==before

@pytest.mark.parametrize('kind', [tarfile.SYMTYPE,tarfile.LNKTYPE])
def test_link_out_of_an_archive(tmp_path, kind):
    with tarfile.open(tmp_path/'x.tar', 'w') as t:
        m = tarfile.TarInfo('train/c/1.png')
        m.type,m.linkname = kind,'../../../secret.png'
        t.addfile(m)
    with pytest.raises(UserError, match='a path outside the archive'): read_images(tmp_path/'x.tar')

@pytest.mark.parametrize('suffix', ['.tgz','.zip'])
def test_truncated_archive(tmp_path, suffix):
    path = write(image_layout(), tmp_path/f'cifar10{suffix}')
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole)//2])
    with pytest.raises(UserError, match='is damaged, incomplete or not an archive'): cifar_dls('cifar10', root=tmp_path)
    path.write_bytes(whole)
    assert len(cifar_dls('cifar10', root=tmp_path, device='cpu').train_ds)==20

def test_no_archive(tmp_path):
    (tmp_path/'x.txt').write_text('hello')
    with pytest.raises(UserError, match='x.txt is damaged, incomplete or not an archive') as e:
        cifar_dls(tmp_path/'x.txt')
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('kw,message', [
    (dict(bs=0), 'bs is 0'), (dict(bs=-1), 'bs is -1'), (dict(bs=1.5), 'bs is 1.5'), (dict(bs='64'), "bs is '64'"),
    (dict(bs=True), 'bs is True'),
    (dict(val_bs=0), 'bs is 0'), (dict(fraction=0), 'fraction is 0'), (dict(fraction=1.1), 'fraction is 1.1'),
    (dict(fraction='half'), "fraction is 'half'"),
    (dict(valid='hold'), "did you mean 'holdout'"), (dict(valid='holdout', holdout=1), 'holdout is 1'),
    (dict(valid='holdout', holdout=1e-9), 'leaves none'),
    (dict(pad=-1), 'pad is -1'), (dict(pad=1.5), 'pad is 1.5'),
    (dict(dataset='digit'), "There is no data set 'digit': did you mean 'digits'"),
    (dict(dataset='no/where'), "no folder or archive 'no/where'"),
    (dict(dataset=Path('nowhere')), "no folder or archive 'nowhere'"),
    (dict(dataset='nowhere.tgz'), "no folder or archive 'nowhere.tgz'")])
def test_bad_arguments(kw, message):
    with pytest.raises(UserError, match=message): cifar_dls(**dict(dict(dataset='digits'), **kw))

# Download

class Server(ThreadingHTTPServer):
    "Serves `content` under any name; with `cut`, breaks off after so many bytes"
    def __init__(self, content):
        self.content,self.cut,self.ranges,self.asked = content,None,True,[]
        super().__init__(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
    url = property(lambda self: f'http://127.0.0.1:{self.server_port}/cifar-10-python.tar.gz')

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        s,start = self.server,0
        if s.ranges and (r := self.headers['Range']): start = int(r.removeprefix('bytes=').rstrip('-'))
        s.asked.append(start)
        if start and start>=len(s.content): return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', len(s.content)-start)
        self.end_headers()
        self.wfile.write(s.content[start:s.cut])

@pytest.fixture
def server(tmp_path, monkeypatch):
    write(some(python_layout(), 'cifar-10-batches-py'), tmp_path/'src.tar.gz')
    s = Server((tmp_path/'src.tar.gz').read_bytes())
    monkeypatch.setitem(datasets, 'cifar10',
        replace(datasets['cifar10'], files=(RemoteFile(s.url, sha256(s.content).hexdigest()),)))
    yield s
    s.shutdown()
    s.server_close()

def files(path): return sorted(o.relative_to(path).as_posix() for o in path.rglob('*') if o.is_file())

def test_download(server, tmp_path):
    root = mkdir(tmp_path/'root')
    assert len(cifar_dls(root=root, device='cpu').train_ds)==100
    assert files(root)==['cifar-10-python.tar.gz'] and server.asked==[0]
    cifar_dls(root=root, device='cpu')
    assert server.asked==[0]

@pytest.mark.parametrize('ranges', [True,False])
def test_download_goes_on(server, tmp_path, ranges):
    "A download that breaks off says so, and the next run goes on where it stopped, if the server can"
    server.cut,server.ranges = 10_000,ranges
    with pytest.raises(UserError, match=r'stopped after 10,000 of .* run it again to resume'):
        cifar_dls()
    archive = tmp_path/'fastai/archive'
    assert files(archive)==['cifar-10-python.tar.gz.part']
    server.cut = None
    assert len(cifar_dls(device='cpu').train_ds)==100
    assert files(archive)==['cifar-10-python.tar.gz'] and server.asked==[0, 10_000 if ranges else 0]

def test_download_was_complete(server, tmp_path):
    "RunInterrupted between the last byte and the new name"
    mkdir(tmp_path/'root').joinpath('cifar-10-python.tar.gz.part').write_bytes(server.content)
    assert len(cifar_dls(root=tmp_path/'root', device='cpu').train_ds)==100

def test_wrong_checksum(server, tmp_path):
    good,server.content = server.content,b'<html>log in</html>'
    mkdir(tmp_path/'root')
    with pytest.raises(UserError, match='does not match its checksum: its SHA-256 is .* It was deleted; run it again'):
        cifar_dls(root=tmp_path/'root')
    assert files(tmp_path/'root')==[]
    server.content = good
    assert len(cifar_dls(root=tmp_path/'root', device='cpu').train_ds)==100

def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setitem(datasets, 'cifar10',
        replace(datasets['cifar10'], files=(RemoteFile('http://127.0.0.1:9/cifar-10-python.tar.gz', '0'*64),)))
    with pytest.raises(UserError, match=r"cifar10 is not in .*fastai/data, .*fastai/archive and http.* put "
        r"cifar-10-python.tar.gz.*'digits' needs no download") as e:
        cifar_dls()
    assert '\n' not in str(e.value) and not (tmp_path/'fastai').exists()

def test_published_checksums():
    "torchvision publishes MD5, and the same addresses"
    for name,cls in (('cifar10',torchvision.datasets.CIFAR10), ('cifar100',torchvision.datasets.CIFAR100)):
        (url,checksum), = datasets[name].files
        assert url==cls.url and len(checksum)==64

# Crop, flip, normalise

def test_crop_flip_is_torchvisions():
    "Exactly, image by image, on the same offsets"
    x = torch.randint(0, 256, (60,3,32,32), dtype=torch.uint8)
    for pad in (0,2,4):
        dy,dx = torch.randint(0, 2*pad+1, (2,60))
        flip = torch.rand(60)<0.5
        got = crop_flip(x, dy, dx, flip, pad)
        for o,i,j,f,g in zip(x, dy.tolist(), dx.tolist(), flip, got):
            im = TF.crop(TF.pad(TF.to_pil_image(o), pad), i, j, 32, 32)
            assert torch.equal(TF.pil_to_tensor(TF.hflip(im) if f else im), g)
        assert got.is_contiguous(memory_format=torch.channels_last)

def test_normalisation_is_torchvisions():
    x,(mean,std) = torch.randint(0, 256, (9,3,32,32), dtype=torch.uint8),datasets['cifar100'].stats
    got,y = NormalizeImages(mean, std)((x, torch.arange(9)))
    torch.testing.assert_close(got, TF.normalize(x.float()/255, mean, std), rtol=1e-6, atol=1e-6)
    assert got.dtype==torch.float32 and y.tolist()==list(range(9))

def test_channel_stats():
    x = torch.randint(0, 256, (50,3,32,32), dtype=torch.uint8)*tensor([0.2,0.5,1.]).view(1,3,1,1)
    x = x.byte()
    mean,std = channel_stats(x)
    assert np.allclose(mean, (x.double()/255).mean((0,2,3)), atol=1e-12) and np.allclose(std,
        (x.double()/255).std((0,2,3), correction=0), atol=1e-12)

def test_draws_are_uniform():
    "Every offset and both sides equally often: a chi-square test that fails once in ten thousand times"
    pos = torch.arange(64).view(8,8).byte()
    tfm = CropFlip(2, stream=RandomStream(1))
    x,_ = tfm((pos.expand(20_000,1,8,8), None), split_idx=0)
    centre = x[:,0,3:5,3:5].reshape(-1,4).long()
    kinds = torch.unique(centre, dim=0, return_counts=True)[1].double()
    assert len(kinds)==50
    assert ((kinds-400)**2/400).sum()<95 # 49 degrees of freedom

def test_flip_can_be_off():
    x = torch.randint(0, 256, (100,3,32,32), dtype=torch.uint8)
    got,_ = CropFlip(0, flip=False)((x, None), split_idx=0)
    assert torch.equal(got, x)

# Splits

def test_digits():
    dls = cifar_dls('digits', device='cpu')
    assert (len(dls.train_ds), len(dls.valid_ds), dls.c, list(dls.vocab))==(1498, 299, 10, [str(i) for i in range(10)])
    assert dls.train_ds.x.shape[1:]==(3,32,32) and dls.train_ds.x.dtype==torch.uint8
    from sklearn.datasets import load_digits
    d = load_digits()
    small = F.avg_pool2d(torch.cat([o.x[:,:1].float() for o in (dls.train_ds,dls.valid_ds)]), 4)[:,0]/255*16
    assert (small.mean()-d.images.mean()).abs()<0.1 # nothing lost, nothing added
    assert torch.cat([dls.train_ds.y, dls.valid_ds.y]).bincount().tolist()==np.bincount(d.target).tolist()

def test_fraction_is_stratified_and_seeded():
    y = cifar_dls('digits', device='cpu').train_ds.y.bincount()
    a,b,c = (cifar_dls('digits', fraction=0.5, seed=s, device='cpu').train_ds for s in (1,1,2))
    assert ((a.y.bincount()-y/2).abs()<=0.5).all()
    assert torch.equal(a.x, b.x) and not torch.equal(a.x, c.x)
    assert cifar_dls('digits', fraction=10/1498, device='cpu').train_ds.y.bincount().tolist()==[1]*10

def test_holdout():
    whole,dls = cifar_dls('digits', device='cpu'),cifar_dls('digits', valid='holdout', holdout=0.2, device='cpu')
    def rows(*ds): return sorted(o.numpy().tobytes() for d in ds for o in d.x)
    assert rows(dls[0].dataset, dls[1].dataset)==rows(whole.train_ds) and torch.equal(dls[2].dataset.x,
        whole.valid_ds.x)
    assert abs(len(dls.valid_ds)-0.2*len(whole.train_ds))<5
    half = cifar_dls('digits', valid='holdout', holdout=0.2, fraction=0.5, device='cpu')
    assert torch.equal(half.valid_ds.x, dls.valid_ds.x)

# The DataLoader

@pytest.fixture
def dls(): return cifar_dls('digits', bs=64, fraction=0.2, device='cpu')

def test_batches(dls):
    xb,yb = dls.one_batch()
    assert type(xb) is Tensor and type(yb) is Tensor and xb.dtype==torch.float32 and yb.dtype==torch.int64
    assert xb.shape==(64,3,32,32) and xb.is_contiguous(memory_format=torch.channels_last)
    assert [len(y) for _,y in dls.train]==[64]*4+[len(dls.train_ds)-256]

def test_last_batch_of_one_image():
    dls = cifar_dls('digits', bs=1497, device='cpu')
    assert [len(y) for _,y in dls.train]==[1497,1]
    assert len(dls.train)==2 and len(list(dls.train.new(drop_last=True)))==1
    assert [len(y) for _,y in cifar_dls('digits', bs=10**6, device='cpu').train]==[1498]

def test_an_epoch_is_a_permutation(dls):
    dl = dls.train.new(after_batch=None)
    x1,y1 = map(torch.cat, zip(*dl))
    x2,y2 = map(torch.cat, zip(*dl))
    assert not torch.equal(y1, y2)
    def rows(x, y): return sorted((o.numpy().tobytes(),l) for o,l in zip(x, y.tolist()))
    assert rows(x1, y1)==rows(x2, y2)==rows(dls.train_ds.x, dls.train_ds.y)

def test_validation_is_plain_and_in_order(dls):
    xb,yb = map(torch.cat, zip(*dls.valid))
    ref,_ = dls.valid.after_batch.fs[-1]((dls.valid_ds.x, None))
    assert torch.equal(xb, ref) and torch.equal(yb, dls.valid_ds.y)

def test_streams_decide_everything(dls):
    a,b = (cifar_dls('digits', fraction=0.2, seed=7, device='cpu').one_batch() for _ in range(2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert dls.train.new().stream is dls.train.stream
    before = torch.get_rng_state(),random.getstate(),np.random.get_state()[1].copy()
    sd = dls.train.stream.state_dict()
    a = list(dls.train)
    dls.train.stream.load_state_dict(sd)
    b = list(dls.train)
    assert all(torch.equal(p, q) for o in zip(a, b) for p,q in zip(*o))
    assert torch.equal(before[0],
        torch.get_rng_state()) and before[1]==random.getstate() and (before[2]==np.random.get_state()[1]).all()

def test_loaders_share_no_transforms(dls):
    class Dark(ItemTransform):
        order = 5
        def encodes(self, b): return torch.zeros_like(b[0]),*b[1:]
    dls.train.after_batch.add(Dark())
    assert [type(o).__name__ for o in dls.train.after_batch.fs]==['Dark','CropFlip','NormalizeImages']
    assert len(dls.valid.after_batch.fs)==2 and dls.one_batch()[0].std()<dls.valid.one_batch()[0].std()

def test_meta_device(dls):
    x = dls.train_ds.x
    dls.to('meta')
    xb,yb = first(dls.train)
    assert xb.device.type=='meta' and xb.shape==(64,3,32,32) and yb.shape==(64,)
    dls.cpu()
    assert torch.equal(dls.train_ds.x, x) and dls.one_batch()[0].isfinite().all()

def test_batches_in_a_given_order(dls):
    "As a wrapper for several processes asks for them: numbers, one after the other"
    got = [y.tolist() for _,y in dls.valid.new(bs=2).create_batches(iter([5,0,7]))]
    y = dls.valid_ds.y.tolist()
    assert got==[[y[5],y[0]],[y[7]]]

# fastai's interface

def small_net(): return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 10))

@pytest.fixture
def learn(dls, tmp_path):
    return Learner(dls, small_net(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=tmp_path, cbs=[])

@pytest.fixture(autouse=True)
def no_windows(monkeypatch):
    monkeypatch.setattr(plt, 'show', noop)
    yield
    plt.close('all')

def test_fit_learns(learn):
    set_seed(1)
    with learn.no_bar(), learn.no_logging(): learn.fit(8, 3e-2)
    assert learn.recorder.values[-1][-1]>0.8

def test_same_seed_same_fit(dls, tmp_path):
    def weights():
        set_seed(3)
        learn = Learner(dls, small_net(), loss_func=CrossEntropyLossFlat())
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
        return learn.model[2].weight.detach()
    assert torch.equal(weights(), weights())

def titles(): return [ax.get_title() for ax in plt.gcf().axes if ax.get_title()]

def test_show_batch(dls):
    for dl in (dls.train,dls.valid):
        dl.show_batch(max_n=4)
        assert len(titles())==4 and all(o in dls.vocab for o in titles())
    dls.train.show_batch(max_n=4, unique=True)
    assert len(set(titles()))==1
    assert isinstance(dls.train.show_batch(show=False)[0], TensorImage)

def test_decode_undoes_normalisation(dls):
    x,y = dls.valid.decode(dls.valid.one_batch())
    assert isinstance(x, TensorImage) and isinstance(y, TensorCategory)
    assert torch.equal((x*255).round().byte(), TensorImage(dls.valid_ds.x[:64]))

def test_show_results(learn):
    with learn.no_bar(): learn.show_results(max_n=4)
    assert len(titles())==4 and all(o.count('\n')==1 for o in titles())

def test_get_preds(learn, dls):
    with learn.no_bar():
        preds,targs = learn.get_preds()
        _,train = learn.get_preds(dl=dls.train) # shuffled, and put back in order
    assert preds.shape==(299,10) and torch.equal(targs, dls.valid_ds.y) and torch.equal(train, dls.train_ds.y)
    with torch.no_grad(): ref = torch.cat([learn.model(x) for x,_ in dls.valid]).softmax(1)
    torch.testing.assert_close(preds, ref)

def test_validate_the_third(tmp_path):
    dls = cifar_dls('digits', valid='holdout', device='cpu')
    learn = Learner(dls, small_net(), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    with learn.no_bar(): assert len(learn.get_preds(ds_idx=2)[0])==299

def test_test_dl(learn, dls, tmp_path):
    "The same image in every form gives the same batch"
    x,y = dls.valid_ds[3]
    arr = x.permute(1,2,0).numpy()
    path = mkdir(tmp_path/dls.vocab[y], parents=True)/'a.png'
    Image.fromarray(arr).save(path)
    items = [path, str(path), Image.fromarray(arr), PILImage.create(path), arr, arr[...,0], arr/255, x,
        Tensor(x.float()/255), (x,), (x,y)]
    dl = dls.test_dl(items)
    xb, = dl.one_batch()
    assert torch.equal(xb, dls.valid.one_batch()[0][3:4].expand(len(items),-1,-1,-1))
    with learn.no_bar(): preds,targs = learn.get_preds(dl=dl)
    assert len(preds)==len(items) and targs is None
    dl = dls.test_dl([(x,y), (x,dls.vocab[y]), path, (arr,int(y))], with_labels=True, bs=2)
    assert torch.cat([b[1] for b in dl]).tolist()==[int(y)]*4
    assert len(dls.test_dl(dls.train_ds, with_labels=True).dataset)==len(dls.train_ds)
    for bad,message in (('missing.png','missing.png cannot be read'), (object(),'object cannot be read')):
        with pytest.raises(UserError, match=message): dls.test_dl([bad])
    with pytest.raises(UserError, match="There is no class 'x'"): dls.test_dl([(arr,'x')], with_labels=True)

def test_predict(learn, dls):
    x,_ = dls.valid_ds[0]
    with learn.no_bar():
        preds,_ = learn.get_preds()
        name,idx,probs = learn.predict(x.permute(1,2,0).numpy())
        inp,*_ = learn.predict(x, with_input=True)
    assert name==dls.vocab[idx] and torch.allclose(probs, preds[0]) and idx==preds[0].argmax()
    assert torch.equal((inp*255).round().byte(), x)

def test_tta(learn, dls):
    with learn.no_bar():
        preds,_ = learn.get_preds()
        tta,targs = learn.tta(n=3)
        aug,_ = learn.tta(n=1, beta=0.)
    assert torch.equal(targs, dls.valid_ds.y) and dls.valid_ds.split_idx==1
    assert tta.shape==preds.shape and not torch.allclose(tta, preds) and not torch.allclose(aug, preds)

def test_split_comes_back(dls):
    with pytest.raises(KeyError):
        with dls.valid_ds.set_split_idx(0):
            assert dls.valid_ds.split_idx==0
            raise KeyError
    assert dls.valid_ds.split_idx==1

def test_interpretation(learn, dls):
    with learn.no_bar():
        for ds_idx in (0,1):
            interp = Interpretation.from_learner(learn, ds_idx=ds_idx)
            losses,idxs = interp.top_losses(4)
            interp.plot_top_losses(4)
            actual = [o.split('/')[1].strip() for o in titles()[-4:]]
            assert actual==[dls.vocab[dls[ds_idx].dataset.y[i]] for i in idxs]
        ci = ClassificationInterpretation.from_learner(learn)
        assert ci.confusion_matrix().sum()==299 and list(ci.vocab)==list(dls.vocab)
        ci.plot_confusion_matrix()

def test_lr_find(learn):
    with learn.no_bar(), learn.no_logging(): assert learn.lr_find(num_it=10, show_plot=False).valley>0

def test_export(learn, dls, tmp_path):
    "Exports hold no images, and predict in a process of their own"
    learn.export('m.pkl')
    assert (tmp_path/'m.pkl').stat().st_size<100_000 and len(dls.train_ds)>0
    x,_ = dls.valid_ds[5]
    Image.fromarray(x.permute(1,2,0).numpy()).save(tmp_path/'a.png')
    code = f"""from fastai.vision.all import *
learn = load_learner({str(tmp_path/'m.pkl')!r})
with learn.no_bar(): name,_,p = learn.predict({str(tmp_path/'a.png')!r})
print(name, *p.tolist(), list(learn.dls.vocab)[-1], learn.dls.c)"""
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert out.returncode==0, out.stderr
    name,*p,last,c = out.stdout.split()
    with learn.no_bar(): ref = learn.predict(x)
    assert name==ref[0] and np.allclose([float(o) for o in p], ref[2], atol=1e-5) and (last,c)==('9','10')

def test_pickle_and_new_empty(dls):
    empty = pickle.loads(pickle.dumps(dls.new_empty()))
    assert len(empty.train_ds)==0 and empty.vocab==dls.vocab and len(empty.train)==0
    again = pickle.loads(pickle.dumps(dls))
    assert torch.equal(again.train_ds.x, dls.train_ds.x) and again.train.stream is again.train.after_batch.fs[0].stream
