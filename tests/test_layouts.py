"Data: the layouts that people have on disk, read exactly or refused with the nearest layout that is read."
import io, json, pickle, random, re, sys, warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
from fastai.vision.all import Image, mkdir
from scipy.io import savemat
from cifar_fastai.core import UserError
from conftest import time_limit
from cifar_fastai.data.sources import *
from cifar_fastai.data.datasets import *
from cifar_fastai.data.loaders import *
from test_data import at_home # chkstyle: ignore
from test_data import Evil, b10, b100, names10, names100, png, python_layout, write
from test_data_faults import refused, same

rng = np.random.default_rng(5)
def images(n, *shape): return rng.integers(0, 256, (n,*(shape or (32,32,3))), np.uint8)
def saved(f, *args, **kwargs):
    "What `f` writes"
    out = io.BytesIO()
    f(out, *args, **kwargs)
    return out.getvalue()

def cells(names): return np.array(names, object)[:,None]
def column(y): return np.array(y, np.uint8)[:,None]

# MATLAB

@pytest.mark.parametrize('compress', [False,True])
@pytest.mark.parametrize('suffix', ['','.zip'])
def test_matlab_batches(tmp_path, compress, suffix):
    "The same images, labels and names as in the Python version"
    def mat(**kw): return saved(savemat, kw, do_compression=compress)
    ten = {f'{k}.mat':mat(data=x, labels=column(y), batch_label='a batch') for k,(x,y) in b10.items()}
    ten['batches.meta.mat'] = mat(label_names=cells(names10))
    root = write({'cifar-10-batches-mat':ten}, tmp_path/f'a{suffix}')
    assert same(read_images(root), read_images(write(dict(d=python_layout()['cifar-10-batches-py']), tmp_path/'py')))
    coarse = {k:[i%20 for i in range(len(y))] for k,(_,y) in b100.items()}
    hundred = {f'{k}.mat':mat(data=x, fine_labels=column(y), coarse_labels=column(coarse[k]), filenames=cells(['a.png']*20))
        for k,(x,y) in b100.items()}
    supers = [f's{i}' for i in range(20)]
    hundred['meta.mat'] = mat(fine_label_names=cells(names100), coarse_label_names=cells(supers))
    root = write({'cifar-100-matlab':hundred}, tmp_path/f'b{suffix}')
    im = read_images(root)
    assert same(im, read_images(write(dict(d=python_layout()['cifar-100-python']), tmp_path/'py100')))
    im = read_images(root, coarse=True)
    assert im.vocab==supers and im.test_y.tolist()==coarse['test']

def test_matlab_copies_are_found_by_name(tmp_path):
    "In the folder that contains the one of its archive, and in that folder itself"
    ten = {f'{k}.mat':saved(savemat, dict(data=x, labels=column(y))) for k,(x,y) in b10.items()}
    root = write({'cifar-10-batches-mat':ten}, tmp_path/'d')
    for o in (root,root/'cifar-10-batches-mat'): assert cifar_dls(root=o, device='cpu').vocab==names10

@pytest.mark.parametrize('change,says', [(dict(data=images(20, 3072).astype(float)), 'data_batch_2 .*is damaged'),
    (dict(labels=column([1]*19)), 'data_batch_2 .*19 labels'), (dict(labels='abc'), 'data_batch_2 holds no images and labels'),
    (dict(data=cells(['a'])), 'holds no images and labels'), (dict(labels=column([1]*20).astype(float)), 'labels that are not integers'),
    (dict(labels=np.zeros((20,2), np.uint8)), 'damaged|integers'), (dict(labels=column([10]*20)), r'must be in \[0, 9\]')])
def test_bad_matlab_batches(tmp_path, change, says):
    ten = {f'{k}.mat':saved(savemat, dict(data=x, labels=column(y)) | (change if k=='data_batch_2' else {})) for k,(x,y) in b10.items()}
    with refused(says): read_images(write(dict(d=ten), tmp_path/'x'))

def test_matlab_7_3(tmp_path):
    ten = {f'{k}.mat':b'MATLAB 7.3 MAT-file'.ljust(512)+b'\x89HDF\r\n\x1a\n' for k in b10}
    with refused('MATLAB 7.3 writes HDF5: save it with -v7'): read_images(write(dict(d=ten), tmp_path/'x'))
    with refused('own.mat is in a format that is not read: save its arrays with numpy.savez'):
        read_images(write(dict(d={'own.mat':saved(savemat, dict(a=1))}), tmp_path/'y')/'d/own.mat')

def test_damaged_matlab_batches(tmp_path):
    "Cell arrays within cell arrays, lengths and types at random: read or refused in one sentence"
    whole = saved(savemat, dict(label_names=cells(names10)))
    ten = {f'{k}.mat':saved(savemat, dict(data=x[:2], labels=column(y[:2]))) for k,(x,y) in b10.items()}
    root,rand = write(dict(d=ten), tmp_path/'x'),random.Random(0)
    with time_limit(60):
        for _ in range(150):
            data = bytearray(whole)
            for _ in range(rand.choice([1,2,8])): data[rand.randrange(120, len(data))] = rand.choice([0,1,4,14,15,255,rand.randrange(256)])
            (root/'d/batches.meta.mat').write_bytes(data)
            try: read_images(root)
            except UserError as e: assert str(e).isprintable()

# Pickles with bytes as keys

@pytest.mark.parametrize('protocol', [2,4,5])
def test_bytes_as_keys(tmp_path, protocol):
    ten = {k:pickle.dumps({b'data':x, b'labels':y, b'filenames':[b'a.png']*20}, protocol) for k,(x,y) in b10.items()}
    ten['batches.meta'] = pickle.dumps({b'label_names':[o.encode() for o in names10], b'num_vis':3072}, protocol)
    assert same(read_images(write(dict(d=ten), tmp_path/'x')), read_images(write(dict(d=python_layout()['cifar-10-batches-py']), tmp_path/'y')))
    supers = [f's{i}' for i in range(20)]
    hundred = {k:pickle.dumps({b'data':x, b'fine_labels':y, b'coarse_labels':[3]*20}, protocol) for k,(x,y) in b100.items()}
    hundred['meta'] = pickle.dumps({b'fine_label_names':names100, b'coarse_label_names':[o.encode() for o in supers]}, protocol)
    root = write(dict(d=hundred), tmp_path/'z')
    assert read_images(root).vocab==names100 and read_images(root, coarse=True).vocab==supers

def test_bytes_as_keys_are_no_way_in(tmp_path, monkeypatch):
    "The unpickler is as restricted as before"
    monkeypatch.chdir(mkdir(tmp_path/'cwd'))
    ten = {k:pickle.dumps({b'data':x, b'labels':y}) for k,(x,y) in b10.items()}
    ten['test_batch'] = pickle.dumps({b'data':b10['test_batch'][0], b'labels':Evil()})
    with refused(r'numpy arrays only, .*\.system'): read_images(write(dict(d=ten), tmp_path/'x'))
    assert not any((tmp_path/'cwd').iterdir())

# Image files

def folders(*splits, classes='ab', n=12, size=(32,32,3)):
    return {f'{s}{c}/{i}.png':png(images(1, *size)[0]) for s in splits for c in classes for i in range(n)}

def pixels(files, k): return np.asarray(Image.open(io.BytesIO(files[k])))

@pytest.mark.parametrize('suffix', ['','.zip'])
@pytest.mark.parametrize('train,test', [('Train/','Test/'), ('TRAIN/','TEST/'), ('train/','Test/')])
def test_case_of_splits(tmp_path, suffix, train, test):
    files = folders(train, test)
    im = read_images(write(dict(d=files), tmp_path/f'x{suffix}'))
    assert (len(im.train_y),len(im.test_y),im.vocab,im.note)==(24,24,['a','b'],'')
    assert np.array_equal(im.test_x[0], pixels(files, f'{test}a/0.png'))

@pytest.mark.parametrize('valid', ['val','valid','validation','Val'])
def test_validation_without_test_images(tmp_path, valid):
    "They are used for testing, which is stated; a holdout comes from the training images"
    files = folders('train/', f'{valid}/', n=10)
    root = write(dict(d=files), tmp_path/'x')
    im = read_images(root)
    assert (len(im.train_y),len(im.test_y),im.valid_x)==(20,20,None) and np.array_equal(im.test_x[0], pixels(files, f'{valid}/a/0.png'))
    with pytest.warns(UserWarning, match='no test images: its 20 validation images are used for testing'):
        dls = cifar_dls(root, device='cpu')
    with pytest.warns(UserWarning): three = cifar_dls(root, device='cpu', valid='holdout')
    assert [len(o.dataset) for o in dls.loaders]==[20,20] and [len(o.dataset) for o in three.loaders]==[18,2,20]
    assert torch.equal(three[2].dataset.x, dls[1].dataset.x)

@pytest.mark.parametrize('valid', ['val','valid','Validation'])
def test_validation_images_select(tmp_path, valid):
    "By default and as a holdout; the test images only on request"
    files = folders('train/', f'{valid}/', 'test/', n=10)
    root = write(dict(d=files), tmp_path/'x')
    for kw in ({}, dict(valid='holdout')):
        dls = cifar_dls(root, device='cpu', **kw)
        assert dls.split==dict(rule='stratified', fraction=1., valid='holdout', holdout=None) and len(dls.loaders)==3
        for i,s in ((1,valid), (2,'test')): assert np.array_equal(dls[i].dataset.x[0].permute(1,2,0), pixels(files, f'{s}/a/0.png'))
    with pytest.warns(UserWarning, match="has 20 validation images, which valid='test' does not use"):
        dls = cifar_dls(root, device='cpu', valid='test')
    assert len(dls.loaders)==2 and dls.split['valid']=='test'

@pytest.mark.parametrize('prefix', ['','train/','some/where/'])
@pytest.mark.parametrize('suffix', ['','.zip'])
def test_class_folders_without_splits(tmp_path, prefix, suffix):
    "A sixth of each class is held out: the same whatever the seed, no image twice, all of them somewhere"
    files = folders(prefix, n=12)
    root = write(dict(d=files), tmp_path/f'x{suffix}')
    im = read_images(root)
    assert im.train_y.bincount().tolist()==[10,10] and im.test_y.bincount().tolist()==[2,2] and im.vocab==['a','b']
    every = {(pixels(files, k).tobytes(),k.split('/')[-2]) for k in files}
    got = [(x.numpy().tobytes(),im.vocab[l]) for xs,ys in ((im.train_x,im.train_y), (im.test_x,im.test_y)) for x,l in zip(xs, ys)]
    assert set(got)==every and len(got)==24
    assert '4 of 24 training images, a sixth of each class, are held out for testing' in im.note
    with pytest.warns(UserWarning, match='are held out for testing'): a = cifar_dls(root, device='cpu', seed=1)
    assert torch.equal(a.valid_ds.y, im.test_y) and torch.equal(a.valid_ds.x.permute(0,2,3,1), im.test_x)
    assert cached_images(root).note==im.note==cached_images(root).note

def kaggle(n=12, csv=None, first=1):
    labels = {i:names10[i%2] for i in range(first, first+n)}
    csv = 'id,label\n'+''.join(f'{k},{v}\n' for k,v in labels.items()) if csv is None else csv
    return {f'{s}/{i}.png':png(images(1)[0]) for s in ('train','test') for i in labels} | {'trainLabels.csv':csv.encode()}

@pytest.mark.parametrize('suffix', ['','.zip'])
def test_kaggle(tmp_path, suffix):
    "Labels by id, and no label for a test image"
    files = kaggle(24)
    root = write({'cifar-10':files}, tmp_path/f'x{suffix}')
    im = read_images(root)
    assert im.vocab==['airplane','automobile'] and len(im.train_y)==20 and len(im.test_y)==4
    label = {pixels(files, f'train/{i}.png').tobytes():i%2 for i in range(1, 25)}
    for x,y in ((im.train_x,im.train_y), (im.test_x,im.test_y)): assert [label[o.numpy().tobytes()] for o in x]==y.tolist()
    assert 'has 24 test images without labels' in im.note
    if not suffix:
        with refused('figures on it are not figures on cifar10'): cifar_dls('cifar10', root=root/'cifar-10')

@pytest.mark.parametrize('csv,says', [('', 'columns id and label'), ('id,name\n1,a\n', 'columns id and label'),
    ('id,label\n1\n', 'columns id and label'), ('id,label\n1,cat\n', 'has no label of d/train/10.png'),
    ('id,label\n'+''.join(f'{i},cat\n' for i in range(1, 14)), "has the id '13', and there is no train/13.png"),
    ('id,label\n'+''.join(f'{i},cat\n' for i in range(1, 13)), 'has one class, cat'), ('\xff\0', 'columns id and label|CSV')])
def test_bad_kaggle(tmp_path, csv, says):
    with refused(says): read_images(write(dict(d=kaggle(csv=csv)), tmp_path/'x'))

def stray():
    good = folders('train/', 'test/', n=2)
    one = png(images(1)[0])
    yield good | {'train/9.png':one},'has d/train/9.png outside of the class folders: move it'
    yield good | {'test/9.png':one},'has d/test/9.png outside of the class folders'
    yield folders('', n=2) | {'a/old/1.png':one},'images in d/a/ and below it in d/a/old/'
    yield good | {'train/a/old/1.png':one},'images in d/train/a/ and below it in d/train/a/old/'
    yield good | {'train/x/c/1.png':one},'class folders at different depths'
    yield good | {'Train/a/7.png':one},'has .*(train/ and Train|Train/ and train)/, which mean the same: keep one'
    yield good | {'val/a/7.png':one, 'valid/a/7.png':one},'val.*, which mean the same'
    yield {'train/1.png':one, 'train/2.png':one},'has d/train/1.png outside of the class folders'
    yield {'test/a/1.png':one},'has no training images'
    yield {'valid/a/1.png':one},'has no training images'
    yield folders('', n=1),'1 image of a: to hold out test images, every class needs at least two'
    yield folders('', classes='a'),'has one class'
    yield {'cifar-10.7z':b'7z'},'cifar-10.7z in .* is in a format that is not read: unpack it'
    yield {'data-00000-of-00001.arrow':b'x', 'dataset_info.json':b'{}'},'load it with datasets.load_from_disk'
    yield {'train.h5':b'x'},'train.h5 in .* numpy.savez'
    yield {'x_train.npy':b'x'},'numpy.savez'

@pytest.mark.parametrize('suffix', ['','.zip'])
@pytest.mark.parametrize('files,says', stray())
def test_nothing_is_left_out_in_silence(tmp_path, files, says, suffix):
    with refused(says): read_images(write(dict(d=files), tmp_path/f'x{suffix}'))

def test_hidden_and_other_files_do_not_matter(tmp_path):
    "Those of systems and editors, and texts"
    good = folders('train/', 'test/', n=2)
    junk = {'.DS_Store':b'x', 'train/.DS_Store':b'x', 'train/a/._0.png':b'x', 'train/a/Thumbs.db':b'x', '.git/a/1.png':b'x',
        '__MACOSX/train/a/._0.png':b'x', 'README.md':b'x', 'train/.hidden/1.png':b'x', 'train/labels.csv':b'x'}
    a,b = (read_images(write(dict(d=o), tmp_path/f'{i}')) for i,o in enumerate((good, good | junk)))
    assert same(a, b)

def test_a_cifar_100_class_named_train(tmp_path):
    "The outermost folder is the split, whatever its case"
    im = read_images(write(dict(d=folders('Train/', 'Test/', classes=['train','Test','c'], n=2)), tmp_path/'x'))
    assert im.vocab==['Test','c','train'] and len(im.train_y)==len(im.test_y)==6

# Arrays

def npz(**kw): return saved(np.savez, **kw)
x,y = images(12),np.arange(12)%3
good_npz = dict(x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])

@pytest.mark.parametrize('place', ['file','folder','.zip'])
@pytest.mark.parametrize('arrays,valid', [(good_npz,0), ({k.upper():v for k,v in good_npz.items()},0),
    (dict(train_images=x, train_labels=y[:,None], test_images=x[:6], test_labels=y[:6,None], val_images=x[6:], val_labels=y[6:,None]),6),
    (dict(x_train=x.transpose(0,3,1,2), y_train=y.astype(np.uint8), x_test=x[:6]/np.float32(255), y_test=y[:6]),0)])
def test_npz(tmp_path, place, arrays, valid):
    root = write(dict(d={'cats.npz':npz(**arrays)}), tmp_path/('x.zip' if place=='.zip' else 'x'))
    im = cached_images(root/'d/cats.npz' if place=='file' else root)
    assert np.array_equal(im.train_x, x) and np.array_equal(im.train_y, y) and np.array_equal(im.test_x, x[:6]) and im.vocab==['0','1','2']
    assert valid==0 or np.array_equal(im.valid_x, x[6:])

def test_npz_of_grey_images_of_another_size(tmp_path):
    "As Keras's mnist.npz"
    grey = images(12, 28, 28)
    path = write(dict(d={'mnist.npz':npz(**good_npz | dict(x_train=grey))}), tmp_path/'x')/'d/mnist.npz'
    im = read_images(path)
    assert np.array_equal(im.train_x[3], np.asarray(Image.fromarray(grey[3]).convert('RGB').resize((32,32), Image.BILINEAR)))
    assert np.array_equal(read_images(path, size=28).train_x, np.repeat(grey[...,None], 3, 3))

@pytest.mark.parametrize('change,says', [(dict(x_train=x/300), 'multiply by 255, round, and convert to uint8'),
    (dict(x_train=x-128.), 'before normalisation'), (dict(x_train=x.astype(float)), 'they must be uint8'),
    (dict(x_train=x.astype(np.int16)-1), r'uint8 in \[0, 255\]'), (dict(x_train=x.astype(np.uint16)), 'uint16'),
    (dict(x_train=x.reshape(12,-1)), r'shape \(12, 3072\)'), (dict(x_train=x[:0], y_train=y[:0]), r'shape \(0, 32, 32, 3\)'),
    (dict(x_train=x[:,:,:,:2]), r'it must be \(n,h,w,3\)'), (dict(x_train=np.full((12,32,32), np.nan)), 'float64'),
    (dict(y_train=y[:5]), 'are 5 for 12 images'), (dict(y_train=np.eye(12)), 'argmax'), (dict(y_train=y/2), 'one integer per image'),
    (dict(y_train=y-1), 'they must start from 0'), (dict(y_train=y.astype(str)), 'one integer per image'), (dict(x_train=x.astype(complex)), 'complex'),
    (dict(y_train=y.astype(object)), 'is damaged or not an .npz file of numbers .*Object arrays'), (dict(y_train=np.uint64(2**63)+y.astype(np.uint64)), 'start from 0')])
def test_bad_npz(tmp_path, change, says):
    with refused(says): read_images(write(dict(d={'a.npz':npz(**good_npz | change)}), tmp_path/'x'))

def test_npz_without_arrays(tmp_path):
    def read(**files): return read_images(write(dict(d=files), tmp_path/'x'))
    with refused('has the arrays .*they must be x_train, y_train, x_test, y_test'): read(**{'a.npz':npz(a=x)})
    with refused('they must be x_train'): read(**{'a.npz':npz(x_train=x)})
    with refused('is damaged or not an .npz file'): read(**{'a.npz':b'x'})
    with refused('has 2 .npz files: specify one'): read(**{'b.npz':npz(**good_npz)})
    with refused('unpacks to too much'):
        read_images(write(dict(d={'a.npz':saved(np.savez_compressed, x_train=np.zeros((1<<15,64,64), np.uint8))}), tmp_path/'y'))

# Parquet

def parquet(x, y, img='img', names=None, **cols):
    from pyarrow import parquet, table
    label = cols.pop('label', 'label')
    t = table({img:[dict(bytes=png(o), path=f'{i}.png') for i,o in enumerate(x)] if isinstance(x, np.ndarray) else x, label:y, **cols})
    info = dict(info=dict(features={label:dict(names=names, _type='ClassLabel')}))
    return saved(lambda f: parquet.write_table(t.replace_schema_metadata(dict(huggingface=json.dumps(info))) if names else t, f))

shards = 'test-data/{}-00000-of-00001.parquet','plain_text/{}-00000-of-00001.parquet','default/{}/0000.parquet','cifar10-{}.parquet'

@pytest.mark.parametrize('pattern', shards)
@pytest.mark.parametrize('img', ['img','image'])
@pytest.mark.parametrize('suffix', ['','.zip'])
def test_parquet(tmp_path, pattern, img, suffix):
    pytest.importorskip('pyarrow')
    files = {pattern.format(k):parquet(x[:n], y[:n], img, ['b','a','c']) for k,n in (('train',12), ('test',6), ('validation',3))}
    im = read_images(write(dict(d=files), tmp_path/f'x{suffix}'))
    assert np.array_equal(im.train_x, x) and np.array_equal(im.train_y, y) and im.vocab==['b','a','c']
    assert np.array_equal(im.test_x, x[:6]) and np.array_equal(im.valid_x, x[:3]) and not im.note

def test_parquet_shards_and_superclasses(tmp_path):
    pytest.importorskip('pyarrow')
    parts = [parquet(x[i:i+6], y[i:i+6], label='fine_label', coarse_label=y[i:i+6]%2) for i in (0,6)]
    files = {f'train-0000{i}-of-00002.parquet':o for i,o in enumerate(parts)} | {'test-00000-of-00001.parquet':parts[0]}
    root = write(dict(d=files), tmp_path/'x')
    assert np.array_equal(read_images(root).train_x, x) and read_images(root).vocab==['0','1','2']
    im = read_images(root, coarse=True)
    assert np.array_equal(im.train_y, y%2) and im.vocab==['0','1']
    with pytest.warns(UserWarning, match='held out'): assert len(cifar_dls(root/'d/train-00000-of-00002.parquet', device='cpu').train_ds)==3

@pytest.mark.parametrize('make,says', [(lambda: b'x', 'damaged or not a parquet file'), (lambda: parquet(x, y, 'picture'), "it must have img or image"),
    (lambda: parquet(x, y, label='target'), 'fine_label or coarse_label'), (lambda: parquet([b'x']*2, [0,1]), 'row 0 in .* is not a readable image'),
    (lambda: parquet([dict(path='a.png')]*2, [0,1]), 'no image in row 0'), (lambda: parquet(x[:0], y[:0]), 'has no images'),
    (lambda: parquet(x, y-1), 'start from 0'), (lambda: parquet(x, y+9, names=['a','b']), r'must be in \[0, 1\]'),
    (lambda: parquet(x[:2], ['a','b']), 'one integer per image')])
def test_bad_parquet(tmp_path, make, says):
    pytest.importorskip('pyarrow')
    with refused(says): read_images(write(dict(d={'train.parquet':make()}), tmp_path/'x'))

def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with refused(r"needs pyarrow: pip install 'cifar_fastai\[parquet\]'"):
        read_images(write(dict(d={'train.parquet':b'x'}), tmp_path/'x'))

# Damage

def sources():
    yield 'npz',{'a.npz':npz(**good_npz)}
    yield 'kaggle',kaggle(4)
    yield 'classes',folders('', n=2)
    yield 'matlab',{f'{k}.mat':saved(savemat, dict(data=x[:2], labels=column(y[:2]))) for k,(x,y) in b10.items()}
    if find_spec('pyarrow'): yield 'parquet',{f'{k}.parquet':parquet(x, y, names=list('abc')) for k in ('train','test')}

@pytest.mark.parametrize('name,files', sources(), ids=lambda o: o if isinstance(o, str) else '')
def test_damage(tmp_path, name, files):
    "Bytes changed, cut, doubled and moved, files missing, empty and renamed at random: images or one sentence"
    rand,ends = random.Random(name),dict(images=0, refused=0)
    with time_limit(120), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for i in range(80):
            now = dict(files)
            k = rand.choice(list(now))
            data,how,pos = bytearray(now[k]),rand.choice('fxcdrme'),rand.randrange(len(now[k]))
            if how=='f': data[pos] ^= 1<<rand.randrange(8)
            if how=='x': data[pos:pos+4] = rand.randbytes(4)
            if how=='c': del data[pos:]
            if how=='d': data[pos:pos] = data[pos:pos+50]
            if how=='e': data.clear()
            now[k] = bytes(data)
            if how in 'rm': moved = now.pop(k)
            if how=='m': now[rand.choice(['x/','train/',''])+Path(k).name] = moved
            path = write(dict(d=now), tmp_path/f'{i}')
            try: im = read_images(path)
            except UserError as e:
                ends['refused'] += 1
                assert str(e).isprintable() and str(e)[-1] in '.?'
            else:
                ends['images'] += 1
                assert check_images(im, path) is im
    assert ends['refused']>5

# The command line

@pytest.mark.parametrize('given,want,source', [([],'holdout','validation images of the data set'), (['--valid','test'],'test','command line'),
    (['--valid','holdout'],'holdout','command line')])
def test_the_command_line_selects_as_cifar_dls_does(tmp_path, capsys, given, want, source):
    from cifar_fastai.cli import cifar_train
    root = write(dict(pets=folders('train/', 'val/', 'test/', n=2)), tmp_path)/'pets'
    cifar_train(argv=['--dataset', str(root), '--print-config', *given])
    line, = (o for o in capsys.readouterr().out.splitlines() if o.startswith('valid:'))
    assert line.split('#')[0].split(':')[1].strip()==want and line.endswith(source)

def test_a_named_data_set_is_no_folder(tmp_path, monkeypatch, capsys):
    "Even where a folder of that name is here"
    from cifar_fastai.cli import cifar_train
    write(dict(cifar10=folders('train/', 'val/', 'test/', n=2)), tmp_path)
    monkeypatch.chdir(tmp_path)
    cifar_train(argv=['--print-config'])
    assert re.search(r'valid: test +# default', capsys.readouterr().out)

def test_a_run_on_a_folder(tmp_path, monkeypatch, capsys):
    "Selected on its validation images, and so it says"
    from cifar_fastai.cli import cifar_train
    root = write(dict(pets=folders('train/', 'val/', 'test/', n=4)), tmp_path)/'pets'
    monkeypatch.chdir(mkdir(tmp_path/'cwd'))
    cifar_train(argv=f'--dataset {root} --model toynet_s1_k3 --epochs 1 --bs 4 --lr 0.01 --device cpu --threads 1'.split())
    assert 'selected on the test images' not in capsys.readouterr().out
    data = json.loads(next(Path('exps').rglob('environment.json')).read_text())['data']
    assert data['split']['valid']=='holdout' and data['train_images']==8

def test_help_says_where_the_cache_is(capsys):
    from cifar_fastai.cli import cifar_train, cifar_zoo
    for cmd,says in ((cifar_train,True), (cifar_zoo,False)):
        with pytest.raises(SystemExit): cmd(argv=['--help'])
        out = ' '.join(capsys.readouterr().out.split())
        assert ('CIFAR_FASTAI_CACHE' in out and 'can be deleted at any time' in out)==says

# Anything in a folder

def one_file(rand):
    "Content of a file of any kind, often the wrong one"
    return rand.choice([b'', b'x', b'id,label\n0,a\n1,b\n', img, img, img, img[:50], good, pickle.dumps([1]), rand.randbytes(40)])

img,good = png(images(1)[0]),npz(**good_npz)
parts = ['train','test','valid','val','Train','a','b','a','b','.hidden','__MACOSX','data','cat dog','caf\u00e9']
stems = ['0.png','1.png','2.JPG','3.png','._0.png','notes.txt','trainLabels.csv','a.npz','test_batch','data_batch_1.mat','batches.meta','x.arrow',
    'train.parquet','train_32x32.mat','.DS_Store','Thumbs.db','train','test.bin']

def shown(files): return [k for k in files if re.search(r'(^|/)(train|test|val)/', k)] or list(files)

@pytest.mark.parametrize('suffix', ['','.zip','.tar'])
@pytest.mark.parametrize('seed', range(4))
def test_folders_of_anything(tmp_path, seed, suffix):
    "Images that are valid, each with its own label, or one sentence"
    rand,ends = random.Random(f'{seed}{suffix}'),dict(images=0, refused=0)
    with time_limit(120), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for i in range(40):
            wild,n = rand.random()<0.6,rand.randrange(12)
            if wild: files = {'/'.join([*rand.choices(parts, k=rand.randrange(4)), rand.choice(stems)]):one_file(rand) for _ in range(n)}
            else: files = {f"{rand.choice(['train/','test/','','val/'])}{rand.choice('ab')}/{rand.choice(stems[:4])}":img for _ in range(n)}
            taken = {k for k in files if any(o.startswith(f'{k}/') for o in files)}
            path = write({'d':{k:v for k,v in files.items() if k not in taken}}, tmp_path/f'{i}{suffix}')
            if not path.exists(): continue
            try: im = cached_images(path, size=rand.choice([32,32,16]))
            except UserError as e:
                ends['refused'] += 1
                assert str(e).isprintable() and str(e)[-1] in '.?'
            else:
                ends['images'] += 1
                n = sum(len(l) for _,l in image_splits(im).values())
                assert wild or n==len(shown(files)), files.keys()
    assert ends['refused']>5 and ends['images']>0

def test_images_that_do_not_fit_into_memory(tmp_path, monkeypatch):
    root = write(dict(d=folders('train/', 'test/', n=3)), tmp_path/'x')
    monkeypatch.setattr('psutil.virtual_memory', lambda: SimpleNamespace(available=12*6*50**2-1))
    assert len(read_images(root, size=48).train_y)==6
    with refused(r'12 images of 50x50 need 0.0 GiB of memory to be read, and 0.0 GiB are free'): read_images(root, size=50)
