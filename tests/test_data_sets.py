"Data sets beyond CIFAR, each from files in the real format: against torchvision's readers, downloads, and bad input"
import io, pickle
from dataclasses import replace
from hashlib import md5, sha256
from http.server import ThreadingHTTPServer
from threading import Thread
import numpy as np, pytest, torch, torchvision
from fastai.vision.all import Path, mkdir
from scipy.io import savemat
from cifar_fastai.core import UserError
from cifar_fastai.data.sources import *
from cifar_fastai.data.datasets import *
from cifar_fastai.data.loaders import *
from cifar_fastai.runs.config import RunConfig
from cifar_fastai.runs.train import train
from cifar_fastai.studies.evaluate import evaluate
from cifar_fastai.studies.report import read_run, run_caption
from test_data import Handler, at_home # chkstyle: ignore
from test_data import b100, binary_layout, names10, names100, png, python_layout, write

rng = np.random.default_rng(1)
coarse_names = [f'super_{i:02}' for i in range(20)]

def images(n): return rng.integers(0, 256, (n,32,32,3), np.uint8)
def saved(f, *args, **kw):
    out = io.BytesIO()
    f(out, *args, **kw)
    return out.getvalue()
def npy(a): return saved(np.save, a)
def mat(x, y, compress=True): return saved(savemat, dict(X=x.transpose(1,2,3,0), y=y), do_compression=compress)

def svhn_files(compress=True):
    "Labels from 1 to 10 in a column, as in the official files"
    return {f'{k}_32x32.mat':mat(images(n), (np.arange(n)%10+1).astype(np.uint8)[:,None], compress)
        for k,n in (('train',30), ('test',20))}

def cifar10_1_files():
    "The images and labels of both versions, of different sizes"
    return {f'cifar10.1_{v}_{k}.npy':npy(a) for v,n in (('v4',21), ('v6',20))
        for k,a in (('data',images(n)), ('labels',(np.arange(n)%10).astype(np.int32)))}

def cinic_files():
    return {f'{s}/{c}/n0_{i}.png':png(images(1)[0]) for s,n in (('train',3), ('valid',2), ('test',1))
        for c in names10 for i in range(n)}

def coarse_layouts():
    "CIFAR-100 with superclasses: Python and binary version, and a folder for each superclass"
    coarse = {k:[o//5 for o in y] for k,(_,y) in b100.items()}
    py = {k:pickle.dumps(dict(data=x, fine_labels=y, coarse_labels=coarse[k]), 2) for k,(x,y) in b100.items()}
    binary = {f'{k}.bin':b''.join(bytes([c,f])+o.tobytes() for o,f,c in zip(x, y, coarse[k])) for k,(x,y) in b100.items()}
    folders = {f'{s}/{coarse_names[i]}/{names100[5*i]}/0.png':png(images(1)[0]) for s in ('train','test') for i in range(20)}
    names = dict(fine_label_names=names100, coarse_label_names=coarse_names)
    texts = {f'{k}.txt':'\n'.join(v).encode() for k,v in names.items()}
    return dict(python=py | dict(meta=pickle.dumps(names, 2)), binary=binary | texts, folders=folders), coarse

def cifair_files(ten=True):
    "The archive of ciFAIR: batches of the Python version"
    return {'ciFAIR-10':python_layout()['cifar-10-batches-py']} if ten else {'ciFAIR-100':python_layout()['cifar-100-python']}

# Readers

@pytest.mark.parametrize('compress', [True,False])
@pytest.mark.parametrize('where', ['root','svhn','svhn.zip','svhn.tar.gz'])
def test_svhn(tmp_path, monkeypatch, where, compress):
    "The same as torchvision reads, as files in root, in a folder of the data set's name, and in archives"
    files = svhn_files(compress)
    write({'.':files}, tmp_path/'tv')
    if where=='root': write({'.':files | {'notes.txt':b'x'}, 'cifar-10-batches-py':{'data_batch_1':b'?'}}, tmp_path/'root')
    else: write({'SVHN' if '.' in where else where:files}, mkdir(tmp_path/'root')/(where if '.' in where else ''))
    dls = cifar_dls('svhn', root=tmp_path/'root', device='cpu')
    monkeypatch.setattr(torchvision.datasets.svhn, 'check_integrity', lambda *a: True)
    for dl,split in zip(dls.loaders, ('train','test')):
        ref = torchvision.datasets.SVHN(tmp_path/'tv', split)
        assert np.array_equal(dl.dataset.x.numpy(), ref.data) and dl.dataset.y.tolist()==ref.labels.tolist()
    assert dls.vocab==[str(i) for i in range(10)] and dls.train_ds.y[9]==0
    assert [type(o).__name__ for o in dls.train.after_batch.fs]==['NormalizeImages']

@pytest.mark.parametrize('suffix', ['','.tar.gz','.zip'])
def test_cinic10(tmp_path, suffix):
    "The same as torchvision's ImageFolder in every split; valid is the holdout"
    files = cinic_files()
    write({'.':files}, tmp_path/'tv')
    write({'.':files} if suffix else {'CINIC-10':files}, mkdir(tmp_path/'root')/(f'CINIC-10{suffix}' if suffix else ''))
    dls = cifar_dls('cinic10', root=tmp_path/'root', valid='holdout', device='cpu')
    for dl,split in zip(dls.loaders, ('train','valid','test')):
        ref = torchvision.datasets.ImageFolder(tmp_path/'tv'/split)
        assert np.array_equal(dl.dataset.x.permute(0,2,3,1), np.stack([np.asarray(o) for o,_ in ref]))
        assert dl.dataset.y.tolist()==ref.targets and list(dl.vocab)==ref.classes
    assert [len(o.dataset) for o in dls.loaders]==[30,20,10] and dls.split['holdout'] is None
    assert [len(o.dataset) for o in cifar_dls('cinic10', root=tmp_path/'root', device='cpu').loaders]==[30,10]
    cached = cifar_dls('cinic10', root=tmp_path/'root', valid='holdout', fraction=1/3, device='cpu')
    assert torch.equal(cached.valid_ds.x, dls.valid_ds.x) and len(cached.train_ds)==10

def test_digest_of_validation_images(tmp_path):
    "A changed validation image changes the digest"
    root = write({'cinic':cinic_files()}, tmp_path/'x')
    a = cached_images(root).digest
    (root/'cinic/valid/cat/n0_0.png').write_bytes(png(images(1)[0]))
    assert cached_images(root).digest!=a

@pytest.mark.parametrize('ten', [True,False])
@pytest.mark.parametrize('packed', [True,False])
def test_cifair(tmp_path, monkeypatch, ten, packed):
    "As torchvision's CIFAR class reads it, of which the authors' own loader is a subclass"
    name,folder = ('cifair10','ciFAIR-10') if ten else ('cifair100','ciFAIR-100')
    monkeypatch.setattr(torchvision.datasets.cifar, 'check_integrity', lambda *a: True)
    write(cifair_files(ten), tmp_path/'root')
    base = torchvision.datasets.CIFAR10 if ten else torchvision.datasets.CIFAR100
    ref = type('ciFAIR', (base,), dict(base_folder=folder))
    root = write(cifair_files(ten), mkdir(tmp_path/'zip')/f'{folder}.zip').parent if packed else tmp_path/'root'
    write(python_layout(), root) # CIFAR next to it is not taken for it
    assert find_data(datasets[name], root).name==f"{folder}{'.zip'*packed}"
    dls = cifar_dls(name, root=root, device='cpu')
    for dl,train in zip(dls.loaders, (True,False)):
        o = ref(tmp_path/'root', train=train)
        assert np.array_equal(dl.dataset.x.permute(0,2,3,1), o.data) and dl.dataset.y.tolist()==o.targets
    assert find_data(datasets[name], find_data(datasets[name], root))==find_data(datasets[name], root)

def test_cifair_is_known_by_its_name(tmp_path):
    inside = write({'batches':python_layout()['cifar-10-batches-py']}, tmp_path/'x')/'batches'
    assert find_data(datasets['cifar10'], inside)==inside and find_data(datasets['cifair10'], inside) is None
    fair = write(cifair_files(), tmp_path/'y')/'ciFAIR-10'
    assert find_data(datasets['cifair10'], fair)==fair and find_data(datasets['cifar10'], fair) is None

@pytest.mark.parametrize('name,v,n', [('cifar10.1','v6',20), ('cifar10.1_v4','v4',21)])
@pytest.mark.parametrize('folder', ['.','CIFAR-10.1/datasets'])
def test_cifar10_1(tmp_path, name, v, n, folder):
    "The images of its version, with the training images of CIFAR-10"
    files = cifar10_1_files()
    write({folder:files, **python_layout()}, tmp_path/'root')
    dls,ref = (cifar_dls(o, root=tmp_path/'root', device='cpu') for o in (name,'cifar10'))
    assert torch.equal(dls.train_ds.x, ref.train_ds.x) and dls.vocab==ref.vocab==names10
    x,y = (np.load(io.BytesIO(files[f'cifar10.1_{v}_{o}.npy'])) for o in ('data','labels'))
    assert np.array_equal(dls.valid_ds.x.permute(0,2,3,1), x) and dls.valid_ds.y.tolist()==y.tolist() and len(y)==n
    assert dls.source_digest!=ref.source_digest

def test_test_set_alone(tmp_path):
    "Without the training images of CIFAR-10 its test images can be read, and not trained on"
    root = write({'.':cifar10_1_files()}, tmp_path/'root')
    im = dataset_images(datasets['cifar10.1'], root, test_only=True)
    assert im.train_x is None and len(im.test_y)==20
    again = dataset_images(datasets['cifar10.1'], root, test_only=True) # from the cache
    assert again.train_x is None and torch.equal(again.test_x, im.test_x) and again.digest==im.digest
    with pytest.raises(UserError, match='has no training images'): cifar_dls(root)

@pytest.mark.parametrize('kind', ['python','binary','folders'])
@pytest.mark.parametrize('suffix', ['','.tar.gz'])
def test_coarse_labels(tmp_path, kind, suffix):
    "Superclasses in every layout; fine labels from the same copy have a cache of their own"
    layouts,coarse = coarse_layouts()
    folder = dict(python='cifar-100-python', binary='cifar-100-binary', folders='cifar100')[kind]
    write({folder:layouts[kind]}, mkdir(tmp_path/'root')/(f'{folder}{suffix}' if suffix else ''))
    dls,fine = (cifar_dls(o, root=tmp_path/'root', device='cpu') if kind!='folders' or 'coarse' in o else None
        for o in ('cifar100_coarse','cifar100'))
    assert dls.vocab==coarse_names
    if kind=='folders': assert dls.train_ds.y.tolist()==list(range(20))
    else:
        assert [o.dataset.y.tolist() for o in dls.loaders]==[coarse['train'],coarse['test']]
        assert fine.vocab==names100 and fine.train_ds.y.tolist()==b100['train'][1]
        assert torch.equal(fine.train_ds.x, dls.train_ds.x) and fine.source_digest!=dls.source_digest

# Bad input

def bad_files():
    svhn,ten_1 = svhn_files(),cifar10_1_files()
    x,y = images(20),np.arange(20)%10+1
    def test(data): return svhn | {'test_32x32.mat':data}
    yield 'svhn',{'train_32x32.mat':svhn['train_32x32.mat']},'lacks test_32x32.mat'
    yield 'svhn',test(svhn['test_32x32.mat'][:-1000]),'test_32x32.mat is damaged or not a MATLAB 5 file'
    yield 'svhn',test(b'hello'),'is damaged or not a MATLAB 5 file'
    yield 'svhn',test(b''),'is damaged or not a MATLAB 5 file'
    yield 'svhn',test(mat(x, y[:9,None])),'holds no uint8 X'
    yield 'svhn',test(mat(x.astype(float), y[:,None])),'holds no uint8 X'
    yield 'svhn',test(saved(savemat, dict(Z=y))),'holds no uint8 X'
    yield 'svhn',test(mat(x, y[:,None]-1)),'labels other than 1 to 10'
    yield 'svhn',test(mat(x, y[:,None]+0.5)),'labels other than 1 to 10'
    yield 'svhn',{'notes.txt':b'x'},'contains no files of svhn'
    def v6(**kw): return ten_1 | {f'cifar10.1_v6_{k}.npy':v for k,v in kw.items()}
    yield 'cifar10.1',{k:v for k,v in ten_1.items() if k!='cifar10.1_v6_labels.npy'},'lacks cifar10.1_v6_labels.npy'
    yield 'cifar10.1',v6(data=npy(np.array([print], object))),'cifar10.1_v6_data.npy is damaged or not an .npy file'
    yield 'cifar10.1',v6(data=pickle.dumps(print)),'is damaged or not an .npy file'
    yield 'cifar10.1',v6(data=ten_1['cifar10.1_v6_data.npy'][:-1]),'is damaged or not an .npy file'
    yield 'cifar10.1',v6(data=npy(x.astype(np.float32))),'holds no uint8 images'
    yield 'cifar10.1',v6(labels=npy(np.zeros((20,1), int))),'holds no labels'
    yield 'cifar10.1',v6(labels=npy(np.zeros(19, int))),'one integer per image'
    yield 'cifar10.1',v6(labels=npy(np.full(20, 10))),'Labels in .* range from 10 to 10'
    yield 'cinic10',{k:v for k,v in cinic_files().items() if 'valid/' not in k},'has no images in valid/<class>/'
    yield 'cinic10',cinic_files() | {'valid/fox/0.png':png(x[0])},'has validation images but no training images of fox'
    yield 'cinic10',cinic_files() | {'valid/cat/0.png':b'x'},'valid/cat/0.png in .* is not a readable image'
    yield 'cinic10',{k:v for k,v in cinic_files().items() if 'cat/' not in k},'has 9 classes and cinic10 has 10'
    yield 'cifair10',cifair_files(False)['ciFAIR-100'],'has 100 classes and cifair10 has 10'
    yield 'cifair10',{k:v for k,v in cifair_files()['ciFAIR-10'].items() if k!='test_batch'},'lacks test_batch'
    batch = pickle.dumps(dict(data=b100['test'][0], fine_labels=b100['test'][1]))
    yield 'cifar100_coarse',coarse_layouts()[0]['python'] | dict(test=batch),'test holds no images and coarse labels'
    yield 'cifar100_coarse',python_layout()['cifar-10-batches-py'],'holds no images and coarse labels'
    yield 'cifar100_coarse',binary_layout()['cifar-10-batches-bin'],'holds no coarse labels'
    yield 'cifar100_coarse',cinic_files(),'has no superclasses'

@pytest.mark.parametrize('suffix', ['','.zip'])
@pytest.mark.parametrize('name,files,message', bad_files())
def test_bad_files(tmp_path, suffix, name, files, message):
    root = write({'d':files}, tmp_path/f'x{suffix}')
    folder = dict(svhn='svhn', cinic10='CINIC-10', cifair10='ciFAIR-10', cifar100_coarse='cifar100').get(name, 'CIFAR-10.1')
    copy = (root if suffix else root/'d').rename(mkdir(tmp_path/'root')/f'{folder}{suffix}')
    if name=='cifar10.1': write(python_layout(), copy.parent)
    with pytest.raises(UserError, match=message) as e: cifar_dls(name, root=copy.parent)
    assert str(e.value).isprintable()

def test_damaged_mat_files(tmp_path):
    "Wherever bytes change, the file is read or refused in one sentence (scipy's reader ends the process)"
    good = svhn_files(False)
    for i in range(300):
        data = bytearray(good['test_32x32.mat'])
        for j in rng.integers(0, 400, 1+i%4): data[j] = rng.integers(256)
        root = write({'.':good | {'test_32x32.mat':bytes(data)}}, tmp_path/'x')
        try: read_images(root, 'svhn')
        except UserError as e: assert str(e).isprintable()

@pytest.mark.parametrize('name,says', [('svnh', "did you mean 'svhn'"), ('cinic', "'cinic10'"), ('cifar10.2', "'cifar10.1'"),
    ('cifair', "'cifair10"), ('cifar100-coarse', "'cifar100_coarse'"), ('cifar10c', 'is an evaluation set')])
def test_unknown_names(name, says):
    with pytest.raises(UserError, match=says): cifar_dls(name)

# Downloads

class FileServer(ThreadingHTTPServer):
    "Serves files by name"
    def __init__(self, files):
        self.files,self.asked = files,[]
        super().__init__(('127.0.0.1', 0), FileHandler)
        Thread(target=self.serve_forever, daemon=True).start()

class FileHandler(Handler):
    def do_GET(self):
        s,name = self.server,self.path.split('/')[-1]
        s.asked.append(name)
        if name not in s.files: return self.send_error(404)
        self.send_response(200)
        self.send_header('Content-Length', len(s.files[name]))
        self.end_headers()
        self.wfile.write(s.files[name])

@pytest.fixture
def serve(monkeypatch):
    "Serves the files of data sets at the URLs of their official files, with checksums of `hash`"
    servers = []
    def f(table, name, files, hash):
        s = FileServer(files)
        servers.append(s)
        monkeypatch.setitem(table, name, replace(table[name], files=tuple(RemoteFile(
            f"http://127.0.0.1:{s.server_port}/{o.url.split('/')[-1]}", hash(files.get(o.url.split('/')[-1], b'')).hexdigest())
            for o in table[name].files)))
        return s
    yield f
    for s in servers:
        s.shutdown()
        s.server_close()

def archive(tmp_path, name, files): return {name:write(files, tmp_path/name).read_bytes()}

def names_in(path): return sorted(o.name for o in path.iterdir())

@pytest.mark.parametrize('name', ['svhn','cinic10','cifair10','cifair100','cifar10.1','cifar10.1_v4','cifar100_coarse'])
def test_downloads(tmp_path, serve, name):
    "Checksummed, into root, and once: without network where the files exist"
    files = {'svhn':svhn_files, 'cifar10.1':cifar10_1_files, 'cifar10.1_v4':cifar10_1_files,
        'cinic10':lambda: archive(tmp_path, 'CINIC-10.tar.gz', {'.':cinic_files()}),
        'cifair10':lambda: archive(tmp_path, 'ciFAIR-10.zip', cifair_files()),
        'cifair100':lambda: archive(tmp_path, 'ciFAIR-100.zip', cifair_files(False)),
        'cifar100_coarse':lambda: archive(tmp_path, 'cifar-100-python.tar.gz',
            {'cifar-100-python':coarse_layouts()[0]['python']})}[name]()
    server = serve(datasets, name, files, md5 if len(datasets[name].files[0].checksum)==32 else sha256)
    root = mkdir(tmp_path/'root')
    if 'cifar10.1' in name: write(python_layout(), root)
    before,wanted = names_in(root),[o.url.split('/')[-1] for o in datasets[name].files]
    dls = cifar_dls(name, root=root, device='cpu')
    assert names_in(root)==sorted(before+wanted) and server.asked==wanted and dls.c==datasets[name].n_out
    cifar_dls(name, root=root, device='cpu')
    assert server.asked==wanted

def test_second_file_is_missing(tmp_path, serve):
    "Only what is missing is downloaded; a file that does not match is deleted, whatever came before it"
    files,root = svhn_files(),mkdir(tmp_path/'root')
    server = serve(datasets, 'svhn', files, md5)
    good,server.files = files,files | {'test_32x32.mat':b'<html>'}
    with pytest.raises(UserError, match='its MD5 is .* It was deleted'): cifar_dls('svhn', root=root)
    assert names_in(root)==['train_32x32.mat']
    server.files = good
    assert len(cifar_dls('svhn', root=root, device='cpu').train_ds)==30
    assert server.asked==['train_32x32.mat','test_32x32.mat','test_32x32.mat']

def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setitem(datasets, 'svhn', replace(datasets['svhn'], files=tuple(RemoteFile(
        f"http://127.0.0.1:9/{o.url.split('/')[-1]}", o.checksum) for o in datasets['svhn'].files)))
    with pytest.raises(UserError, match='svhn is not in .* put train_32x32.mat and test_32x32.mat, into'): cifar_dls('svhn')

def test_published_checksums():
    "torchvision's addresses and MD5; every file has a checksum of its own"
    assert [tuple(o) for o in datasets['svhn'].files]==[(u,m) for u,_,m in
        (torchvision.datasets.SVHN.split_list[k] for k in ('train','test'))]
    sums = {o.url:o.checksum for d in [*datasets.values(), *corrupted_sets.values()] for o in d.files}
    assert len(set(sums.values()))==len(sums)==13 and all(len(o) in (32,64) and int(o, 16) for o in sums.values())

# Evaluation

@pytest.fixture(scope='module')
def ten(tmp_path_factory):
    "Two runs on CIFAR-10 of random images, and the folder of the data"
    d = tmp_path_factory.mktemp('ten')
    write(python_layout() | {'.':cifar10_1_files()} | cifair_files(), d/'data')
    cfg = RunConfig(model='lenet', dataset='cifar10', bs=20, epochs=1, lr=0.05, schedule='onecycle', threads=1)
    return [train(cfg.override(seed=s), 'a', exps=d/'exps', root=d/'data', device='cpu', bar=False, curves=False)
        for s in range(2)],d/'data'

def probs_by_hand(run, root, x):
    from cifar_fastai.runs.export import load_run
    learn,(mean,std) = load_run(run, root, 'last'),datasets['cifar10'].stats
    xb = (torch.from_numpy(x).permute(0,3,1,2).float()/255-torch.tensor(mean).view(1,3,1,1))/torch.tensor(std).view(1,3,1,1)
    learn.model.eval()
    with torch.no_grad(): return learn.model(xb).softmax(1)

def test_evaluate_on_another_test_set(ten):
    "By hand; the ensemble too; by name and by folder"
    runs,root = ten
    x,y = (np.load(root/f'cifar10.1_v6_{o}.npy') for o in ('data','labels'))
    ps = [probs_by_hand(o, root, x) for o in runs]
    e = evaluate(runs, root=root, test='cifar10.1')
    hits = [float((p.argmax(1).numpy()==y).mean()) for p in [*ps, (ps[0]+ps[1])/2]]
    assert [r['accuracy'] for r in e.rows]==pytest.approx(hits) and torch.allclose(e.probs, (ps[0]+ps[1])/2, atol=1e-5)
    assert 'Test images: cifar10.1, 20.' in e.caption
    assert evaluate(runs, root=root, test=root/'ciFAIR-10').rows[0]['nll']==evaluate(runs, root=root, test='cifair10').rows[0]['nll']
    assert len(evaluate(runs[0], root=root, test='cifar10.1_v4').y)==21

def c_files(n=4, classes=10, names=None):
    "CIFAR-10-C with `n` images per severity"
    y = np.arange(n)%classes
    return {f'{k}.npy':npy(images(5*n)) for k in names or benchmark_corruptions+extra_corruptions} | {
        'labels.npy':npy(np.tile(y, 5).astype(np.uint8))}

@pytest.mark.parametrize('form', ['folder','CIFAR-10-C','CIFAR-10-C.tar'])
def test_corrupted(ten, tmp_path, form):
    "By hand: per corruption the mean over severities, mCE over the fifteen of the benchmark"
    runs,root = ten
    files = c_files()
    path = write({'CIFAR-10-C':files}, mkdir(tmp_path/'d')/('x.tar' if form=='folder' else form if 'tar' in form else ''))
    e = evaluate(runs, root=root, corrupted=path)
    y = np.load(io.BytesIO(files['labels.npy']))
    for i,row in enumerate(e.rows):
        errors = []
        for k in benchmark_corruptions+extra_corruptions:
            ps = [probs_by_hand(o, root, np.load(io.BytesIO(files[f'{k}.npy']))) for o in (runs if i==2 else runs[i:i+1])]
            hits = sum(ps).argmax(1).numpy()==y
            assert row[k]==pytest.approx(np.mean([hits[4*s:4*s+4].mean() for s in range(5)]))
            if k in benchmark_corruptions: errors.append(1-hits.mean())
        assert row['mCE']==pytest.approx(np.mean(errors))
    assert 'mCE' in e.table()

def test_download_of_a_corrupted_set(ten, tmp_path, serve):
    runs,root = ten
    files = archive(tmp_path, 'CIFAR-10-C.tar', {'CIFAR-10-C':c_files()})
    server = serve(corrupted_sets, 'cifar10c', files, sha256)
    try:
        a,b = (evaluate(runs[0], root=root, corrupted='cifar10c').rows for _ in range(2))
        assert a==b and server.asked==['CIFAR-10-C.tar']
    finally: (root/'CIFAR-10-C.tar').unlink(missing_ok=True)

def bad_corrupted():
    good = c_files()
    yield {k:v for k,v in good.items() if k!='labels.npy'},'lacks labels.npy'
    yield {k:v for k,v in good.items() if k!='fog.npy'},'lacks fog.npy'
    yield good | {'fog.npy':npy(images(19))},'fog.npy in .* has 19 images: it must have 5 severities of 4'
    yield good | {'fog.npy':b'x'},'fog.npy in .* is damaged or not an .npy file'
    yield good | {'labels.npy':npy(np.arange(20)%10)},'the same labels for each of 5 severities'
    yield good | {'labels.npy':npy(np.full(20, 11))},'range from 11 to 11'
    yield good | {'x/fog.npy':good['fog.npy']},'holds a corruption twice'
    yield {'notes.txt':b'x'},'lacks labels.npy'

@pytest.mark.parametrize('suffix', ['','.tar'])
@pytest.mark.parametrize('files,message', bad_corrupted())
def test_bad_corrupted(tmp_path, files, message, suffix):
    path = write({'CIFAR-10-C':files}, tmp_path/f'x{suffix}')
    with pytest.raises(UserError, match=message) as e: list(corrupted_images(path, 10))
    assert str(e.value).isprintable()

def test_truncated_corrupted_archive(tmp_path):
    path = write({'CIFAR-10-C':c_files()}, tmp_path/'x.tar')
    path.write_bytes(path.read_bytes()[:200_000])
    with pytest.raises(UserError, match='x.tar .*(is damaged|lacks)'): list(corrupted_images(path, 10))

@pytest.mark.parametrize('kw,message', [(dict(test='cifar10.2'), "no test set 'cifar10.2': did you mean 'cifar10.1'"),
    (dict(test='svhn'), 'The classes of .*svhn.* are not those of the runs'), (dict(corrupted='cifar-10-d'), "'cifar10c'"),
    (dict(corrupted='cifar100c'), 'cifar100c has 100 classes, and the runs have 10')])
def test_refused_evaluations(ten, kw, message, tmp_path):
    runs,data = ten
    if kw=={'test':'svhn'}: kw = dict(test=write({'svhn':svhn_files()}, tmp_path/'svhn')/'svhn')
    with pytest.raises(UserError, match=message): evaluate(runs, root=data, **kw)

def test_corrupted_needs_the_classes_of_cifar10(tmp_path):
    cfg = RunConfig(model='lenet', dataset='digits', bs=64, epochs=1, fraction=0.1, lr=0.05, schedule='onecycle', threads=1)
    run = train(cfg, 'a', exps=tmp_path/'exps', device='cpu', bar=False, curves=False)
    path = write({'CIFAR-10-C':c_files()}, tmp_path/'x.tar')
    with pytest.raises(UserError, match='The classes of .* are not those of the runs'): evaluate(run, corrupted=path)

def test_command(ten, tmp_path, capsys):
    from cifar_fastai.cli import cifar_evaluate
    runs,root = ten
    path = write({'CIFAR-10-C':c_files()}, tmp_path/'x.tar')
    cifar_evaluate(argv=[str(runs[0]), '--root', str(root), '--test', 'cifar10.1', '--corrupted', str(path)])
    out = capsys.readouterr().out
    assert 'Test images: cifar10.1, 20.' in out and 'mCE' in out and 'jpeg_compression' in out

def test_a_run_with_validation_images(tmp_path):
    "Is captioned, and its name has the whole name of the data set"
    from cifar_fastai.studies.experiments import _change_part
    write({'CINIC-10':cinic_files()}, tmp_path/'root')
    cfg = RunConfig(model='lenet', dataset='cinic10', bs=10, epochs=1, lr=0.05, schedule='onecycle', threads=1, valid='holdout')
    run = train(cfg, 'a', exps=tmp_path/'exps', root=tmp_path/'root', device='cpu', bar=False, curves=False)
    assert 'validated on its validation images' in run_caption([read_run(run)])
    assert evaluate(run, root=tmp_path/'root').rows[0]['accuracy']>=0
    assert _change_part('dataset', 'cifar10.1')!=_change_part('dataset', 'cifar10')
    assert _change_part('dataset', Path('x/cifar10.tar.gz'))==_change_part('dataset', 'cifar10')
