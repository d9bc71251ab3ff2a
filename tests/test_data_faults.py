"Data: damaged caches, hostile archives, special files, and images in every form, each loaded right or refused in one sentence."
import bz2, gzip, io, lzma, os, pickle, random, socket, stat, struct, tarfile, warnings, zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
import numpy as np, pytest, torch
from fastai.vision.all import CategoryMap, Image, TensorImage, mkdir
from cifar_fastai.core import UserError
from conftest import time_limit
from cifar_fastai.data.sources import *
from cifar_fastai.data.datasets import *
from cifar_fastai.data.loaders import *
from cifar_fastai.data.sources import _fingerprint
from test_data import at_home # chkstyle: ignore
from test_data import b10, binary_layout, names10, png, python_layout, write

img = png(np.arange(3072).reshape(32,32,3).astype(np.uint8))
good = {f'{s}/{c}/{i}.png': img for s in ('train','test') for c in 'ab' for i in range(2)}
py,bn = python_layout()['cifar-10-batches-py'],binary_layout()['cifar-10-batches-bin']

@contextmanager
def refused(match=''):
    "One printable line as `UserError`"
    with pytest.raises(UserError, match=match) as e: yield e
    assert str(e.value).isprintable() and str(e.value)[-1] in '.?'

def same(a, b): return all(torch.equal(p, q) and p.dtype==q.dtype for p,q in zip(a[:4], b[:4])) and a.vocab==b.vocab

# Cache

@pytest.fixture
def cached(tmp_path):
    "A data set, and the file that caches it"
    root = write(dict(d=good), tmp_path/'x')
    im = cached_images(root)
    fn, = (tmp_path/'cache').iterdir()
    return root,im,fn

def test_flipped_bits_in_the_cache(cached):
    "Wherever a bit flips, the images that come back are the right ones"
    root,im,fn = cached
    whole,rand = fn.read_bytes(),random.Random(0)
    for i in range(200):
        data,pos = bytearray(whole),rand.randrange(len(whole)) if i%2 else rand.randrange(700)
        data[pos] ^= 1<<rand.randrange(8)
        fn.write_bytes(data)
        assert same(cached_images(root), im), pos

@pytest.mark.parametrize('change', [
    dict(train_x=torch.zeros(4,32,32,3)), dict(train_x=torch.zeros(4,3,32,32, dtype=torch.uint8)),
    dict(test_x=torch.zeros(3,32,32,3, dtype=torch.uint8)),
    dict(train_y=torch.tensor([0,0,1,2])), dict(test_y=torch.tensor([0,0,1,-1])), dict(train_y=torch.zeros(4)),
    dict(train_y=torch.zeros(4,1, dtype=torch.int64)),
    dict(vocab=['a']), dict(vocab='ab'), dict(vocab=['a','a']), dict(vocab=['a',3]), dict(vocab=None),
    dict(vocab={'a':1,'b':2})], ids=str)
def test_a_cache_of_something_else(cached, monkeypatch, change):
    "Labels, types, shapes and names of a cache are checked as those of a data set, even where its checksum is right"
    root,im,fn = cached
    monkeypatch.setattr('cifar_fastai.data.sources.read_images', lambda p: im._replace(**change))
    monkeypatch.setattr('cifar_fastai.data.sources.check_images', lambda im, path: im)
    fn.unlink()
    with suppress(Exception): cached_images(root)
    monkeypatch.undo()
    os.environ['CIFAR_FASTAI_CACHE'] = str(fn.parent)
    try: assert same(cached_images(root), im)
    finally: del os.environ['CIFAR_FASTAI_CACHE']

@pytest.mark.parametrize('umask', [0o022,0o002,0o077,0o027])
def test_the_umask_decides_who_reads_the_cache(tmp_path, umask):
    old = os.umask(umask)
    try: cached_images(write(dict(d=good), tmp_path/'x'))
    finally: os.umask(old)
    fn, = (tmp_path/'cache').iterdir()
    assert stat.S_IMODE(fn.stat().st_mode)==0o666&~umask

def test_leftovers_of_a_killed_process(cached):
    "Temporary files that a killed process left are removed by the next one that writes, but not those of a process that is writing"
    root,im,fn = cached
    old,new = (fn.with_name(f'{fn.name}.{i}.tmp') for i in (1,2))
    for o in (old,new): o.write_bytes(b'x')
    os.utime(old, (1,1))
    fn.write_bytes(b'')
    cached_images(root)
    assert sorted(fn.parent.iterdir())==[fn,new]

@pytest.mark.parametrize('kind', ['fifo','link','dangling','folder','socket'])
def test_a_cache_file_that_is_no_file(cached, tmp_path, kind):
    "Nothing but a regular file is read or replaced"
    root,im,fn = cached
    other = tmp_path/'other'
    other.write_bytes(fn.read_bytes() if kind=='link' else b'mine')
    fn.unlink()
    make_special(kind, fn, other)
    before = fn.lstat().st_ino,other.read_bytes()
    with time_limit(): assert same(cached_images(root), im)
    assert (fn.lstat().st_ino,other.read_bytes())==before

@pytest.mark.parametrize('name', ['n'*250, b'caf\xe9 \xff'.decode(errors='surrogateescape')])
def test_any_name_can_be_cached(tmp_path, monkeypatch, name):
    root = write(dict(d=good), tmp_path/name)
    im = cached_images(root)
    monkeypatch.setattr('cifar_fastai.data.sources.read_images', None)
    assert same(cached_images(root), im)

def test_digest_of_the_source(tmp_path):
    "The same for the same images in whatever layout; every pixel and label counts"
    a,b = (cached_images(write(dict(d=l), tmp_path/f'{n}{s}')) for l,n,s in ((py,'p','.zip'), (bn,'b','.tgz')))
    assert a.digest==b.digest==image_digest(a) and len(a.digest)==16 and int(a.digest, 16)>=0
    for k in Images._fields[:4]:
        t = getattr(a, k).clone()
        t.view(-1)[-1] = (t.view(-1)[-1]+1)%10
        assert image_digest(a._replace(**{k: t}))!=a.digest
    assert image_digest(Images(a.test_x, a.test_y, a.train_x, a.train_y, a.vocab))!=a.digest

# Archives

def zeros_zip(path, n=1, size=80<<20):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        for k,v in good.items(): z.writestr(k, v)
        for i in range(n):
            with z.open(f'train/a/z{i}.png', 'w') as f:
                for _ in range(size>>20): f.write(bytes(1<<20))

def zeros_tgz(path, typ=tarfile.REGTYPE, size=80<<20):
    with tarfile.open(path, 'w:gz', compresslevel=1) as t:
        m = tarfile.TarInfo('train/a/z.png')
        m.size,m.type = size,typ
        t.addfile(m, io.BytesIO(bytes(size)))

def sparse_tar(path):
    "A file of a terabyte that is nothing but a hole, in the header of GNU tar"
    m = tarfile.TarInfo('train/a/z.png')
    m.type = tarfile.GNUTYPE_SPARSE
    h = bytearray(m.tobuf(tarfile.GNU_FORMAT))
    h[386:386+24] = b'%011o\0%011o\0' % (1<<30, 0)
    h[483:495] = b'%011o\0' % ((1<<33)-512)
    h[148:156] = b' '*8
    h[148:156] = b'%06o\0 ' % sum(h)
    path.write_bytes(bytes(h)+bytes(1024))

def links_tar(path):
    "A large file, and many hard links to it"
    with tarfile.open(path, 'w') as t:
        m = tarfile.TarInfo('train/a/z.png')
        m.size = 1<<20
        t.addfile(m, io.BytesIO(bytes(1<<20)))
        for i in range(200):
            m = tarfile.TarInfo(f'train/a/{i}.png')
            m.type,m.linkname = tarfile.LNKTYPE,'train/a/z.png'
            t.addfile(m)

@pytest.mark.parametrize('name,make',
    [('one.zip', zeros_zip), ('many.zip', lambda p: zeros_zip(p, 80, 1<<20)), ('one.tgz',
        zeros_tgz),
        ('header.tgz', lambda p: zeros_tgz(p, tarfile.XHDTYPE)),
        ('name.tgz', lambda p: zeros_tgz(p, tarfile.GNUTYPE_LONGNAME)),
        ('hole.tar', sparse_tar),
        ('links.tar', links_tar)], ids=lambda o: o if isinstance(o, str) else '')
def test_archive_bombs(tmp_path, name, make):
    "Whatever an archive unpacks to, no more than a limit is read"
    make(tmp_path/name)
    with time_limit(60), refused('unpacks to more than .* MiB'): read_images(tmp_path/name)

@pytest.mark.parametrize('suffix', ['','.zip','.tar'])
def test_too_many_files(tmp_path, monkeypatch, suffix):
    path = write(dict(d=good | {f'train/a/{i}.txt': b'' for i in range(20)}), tmp_path/f'x{suffix}')
    assert len(read_images(path).train_y)==4
    monkeypatch.setattr('cifar_fastai.data.sources._max_files', 25)
    with refused('more than 25 files'): read_images(path)

@pytest.mark.parametrize('pack', [gzip.compress, bz2.compress, lzma.compress, bytes])
def test_every_compression(tmp_path, pack):
    "Recognised by content, whatever the name"
    path = write(dict(d=good), tmp_path/'x.tar')
    path.write_bytes(pack(path.read_bytes()))
    assert read_images(path).vocab==['a','b']

def test_zip_made_on_windows(tmp_path):
    with zipfile.ZipFile(tmp_path/'x.zip', 'w') as z:
        for k,v in good.items():
            m = zipfile.ZipInfo('d/'+k)
            m.filename = ('d/'+k).replace('/', '\\') # as it stands in the file
            z.writestr(m, v)
        m = zipfile.ZipInfo('empty/')
        m.filename = 'd\\train\\empty\\'
        z.writestr(m, b'')
    assert all('\\' in o for o in zipfile.ZipFile(tmp_path/'x.zip').namelist())
    assert same(read_images(tmp_path/'x.zip'), read_images(write(dict(d=good), tmp_path/'ref')))
    with zipfile.ZipFile(tmp_path/'y.zip', 'w') as z:
        m = zipfile.ZipInfo('x')
        m.filename = '..\\train\\a\\1.png'
        z.writestr(m, img)
    with refused('a path outside the archive'): read_images(tmp_path/'y.zip')

@pytest.mark.parametrize('suffix', ['.tar','.zip'])
@pytest.mark.parametrize('name', ['train/c','train/a/5.png'])
def test_links_in_archives(tmp_path, suffix, name):
    "A class that is only a link is not left out in silence"
    path = write(dict(d=good), tmp_path/f'x{suffix}')
    if suffix=='.zip':
        with zipfile.ZipFile(path, 'a') as z:
            m = zipfile.ZipInfo('d/'+name)
            m.external_attr,m.create_system = (stat.S_IFLNK|0o777)<<16,3
            z.writestr(m, 'a')
    else:
        with tarfile.open(path, 'a') as t:
            m = tarfile.TarInfo('d/'+name)
            m.type,m.linkname = tarfile.SYMTYPE,'a'
            t.addfile(m)
    with refused(f'symbolic link d/{name}'): read_images(path)

def test_two_copies_in_one_source(tmp_path):
    "Batches of two folders are not mixed"
    with refused('holds .*test_batch.* twice'):
        read_images(write(dict(a=py, b=dict(test_batch=py['test_batch'])), tmp_path/'x'))

def test_bytes_that_are_not_utf8(tmp_path):
    label = b'caf\xe9'.decode(errors='surrogateescape')
    root = write(dict(d=good | {f'train/a/{label}.png': img}), tmp_path/label)
    assert len(read_images(root).train_y)==5
    for bad in (f'train/{label}/1.png', f'test/{label}/1.png'):
        with refused(r'caf\\udce9'): read_images(write(dict(d=good | {bad: img}), tmp_path/f'{bad[:4]}{label}'))
    with refused(r'caf\\udce9'):
        read_images(write(dict(d={k:v for k,v in py.items() if k!='test_batch'}), tmp_path/f'b{label}'))
    with refused('class names'): read_images(write(dict(d=bn | {'batches.meta.txt': b'caf\xe9\n'*10}), tmp_path/'c'))

# Folders

def make_special(kind, path, other=None):
    "A FIFO, socket, device, folder or link at `path`"
    if kind=='fifo': os.mkfifo(path)
    if kind=='socket':
        s,old = socket.socket(socket.AF_UNIX),os.getcwd()
        os.chdir(path.parent) # the path of a socket is short
        try: s.bind(path.name)
        finally:
            os.chdir(old)
            s.close()
    if kind=='device': path.symlink_to('/dev/zero')
    if kind=='dangling': path.symlink_to('nowhere')
    if kind=='loop': path.symlink_to(path.name)
    if kind=='folder': path.mkdir()
    if kind=='link': path.symlink_to(other)

specials = ['fifo','socket','device','dangling','loop']

@pytest.mark.parametrize('kind', specials)
@pytest.mark.parametrize('layout,name', [(good,'train/a/0.png'), (good,'test/b/9.png'), (py,'test_batch'),
    (bn,'data_batch_1.bin'), (py,'batches.meta')])
def test_special_files(tmp_path, kind, layout, name):
    "What is no regular file neither hangs nor is left out in silence; elsewhere it does not matter"
    root = write(dict(d=layout), tmp_path/'x')
    (root/'d'/name).unlink(missing_ok=True)
    make_special(kind, root/'d'/name)
    with time_limit(), refused(f'{Path(name).name} cannot be read'): cached_images(root)
    (root/'d'/name).rename(root/'d/notes')
    if name=='test/b/9.png':
        with time_limit(): assert len(cached_images(root).test_y)==4

@pytest.mark.parametrize('kind', specials)
def test_special_sources(tmp_path, monkeypatch, kind):
    "As the data set itself, as root and in root, and as an image to predict"
    path = mkdir(tmp_path/'r')/'cifar10.tgz'
    make_special(kind, path)
    monkeypatch.setitem(datasets, 'cifar10', DataSet('cifar10', 'cifar10', (RemoteFile('http://127.0.0.1:9/x.tgz', '0'*64),), n_out=10))
    with time_limit():
        for f in (lambda: cifar_dls(path), lambda: cifar_dls('cifar10', root=path),
            lambda: cifar_dls('cifar10', root=tmp_path/'r'),
            lambda: list(files_in(path)), lambda: as_image(path)):
            with refused(): f()

def test_a_huge_file(tmp_path):
    "A hole of a terabyte"
    root = write(dict(d=good), tmp_path/'x')
    with open(root/'d/train/a/0.png', 'wb') as f: f.truncate(1<<40)
    with time_limit(), refused('0.png cannot be read .*larger than'): read_images(root)

@pytest.mark.skipif(os.geteuid()==0, reason='the superuser may read everything')
def test_unreadable(tmp_path):
    root = write(dict(d=good), tmp_path/'x')
    for o in ('d/train/a/0.png','d/train'):
        (root/o).chmod(0)
        with refused('Permission denied'): cached_images(root)
        (root/o).chmod(0o700)

def test_linked_class_folders(tmp_path):
    "Followed, as torchvision follows them; a change behind a link is seen"
    root,away = write(dict(d=good), tmp_path/'x'),tmp_path/'away'
    for o in ('train','test'): write(dict(c={'0.png': img}), away/o)
    for o in ('train/c','test/c'): (root/'d'/o).symlink_to(away/o)
    assert cached_images(root).vocab==['a','b','c'] and len(cached_images(root).train_y)==5
    (away/'train/c/1.png').write_bytes(img)
    assert len(cached_images(root).train_y)==6
    key = _fingerprint(root)
    other = png(255-np.arange(3072).reshape(32,32,3).astype(np.uint8))
    size = max(len(img), len(other))
    for o in (img,other): # PNG ignores what follows its end: same size, same time, other content
        (away/'train/c/1.png').write_bytes(o.ljust(size, b'\0'))
        os.utime(away/'train/c/1.png', (1,1))
        assert key!=(key := _fingerprint(root))
    linked = tmp_path/'linked'
    linked.symlink_to(root)
    assert len(cached_images(linked).train_y)==6

def test_link_cycles(tmp_path):
    root = write(dict(d=good), tmp_path/'x')
    (root/'d/train/a/up').symlink_to('..')
    (root/'d/train/b/top').symlink_to(root)
    for i in 'pq': mkdir(root/'d'/i)
    (root/'d/p/q').symlink_to('../q')
    (root/'d/q/p').symlink_to('../p')
    with time_limit(): im = cached_images(root)
    assert im.vocab==['a','b'] and len(im.train_y)==4

# What batches hold

def batch(**kw): return pickle.dumps(dict(dict(data=b10['test_batch'][0], labels=b10['test_batch'][1]), **kw))
x20 = b10['test_batch'][0]

@pytest.mark.parametrize('labels', [None, 'abc', 3, 2.5, {}, ['1']*20, [1.]*20, [None]*20, [[1]]*20, [[1],[1,2]]*10,
    [10**30]*20, [-1]*20, [2**63]*20, [2**64-1]*20, [True]*20,
    [], [1]*19, (), np.ones(20), np.ones((20,1), int), np.array([1]*20, object), np.array(['1']*20), np.array(3),
    np.zeros(20, 'datetime64[s]'),
    np.full(20, 2**64-1, np.uint64), [float('nan')]*20, {1: 2}, b'x'*20], ids=lambda o: str(o)[:20])
def test_labels_of_any_kind(tmp_path, labels):
    with refused('test_batch|[Ll]abels'):
        read_images(write(dict(d=py | dict(test_batch=batch(labels=labels))), tmp_path/'x.zip'))

@pytest.mark.parametrize('labels', [np.array([1]*20, np.uint8), np.array([1]*20, np.int32), (1,)*20])
def test_labels_that_are_integers(tmp_path, labels):
    assert read_images(write(dict(d=py | dict(test_batch=batch(labels=labels))),
        tmp_path/'x.zip')).test_y.tolist()==[1]*20

@pytest.mark.parametrize('data',
    [None, 'abc', 7, [[0]*3072]*20, x20.astype(float), x20.astype(np.int16), x20[:,:-1], x20[0],
        x20.reshape(20,3,32,32), x20.astype(object), np.array(3),
        np.zeros((0,3072), np.uint8)], ids=lambda o: str(o)[:20])
def test_images_of_any_kind(tmp_path, data):
    with refused('test_batch'): read_images(write(dict(d=py | dict(test_batch=batch(data=data))), tmp_path/'x.zip'))

@pytest.mark.parametrize('d', [None, 3, [], [1,2], 'data', (), {}, dict(data=x20), dict(labels=[1]*20), {b'data': x20},
    {3: x20}, x20, np.array(None, object)], ids=lambda o: str(o)[:20])
def test_batches_of_any_shape(tmp_path, d):
    with refused('test_batch holds no images and labels'):
        read_images(write(dict(d=py | dict(test_batch=pickle.dumps(d))), tmp_path/'x.zip'))

@pytest.mark.parametrize('meta', [None, 3, [], names10, 'abc', (), np.arange(10), dict(label_names=3),
    dict(label_names='abcdefghij'), dict(label_names=list(range(10))),
    dict(label_names=names10[:3]), dict(label_names=[]), dict(label_names=[['a']]*10), dict(label_names=['a']*10),
    dict(label_names=[None]*10), dict(label_names={'a':1}),
    dict(label_names=np.arange(10)), dict(label_names=['']+names10), dict(label_names=['\udce9']+names10),
    dict(label_names=np.array(3))], ids=lambda o: str(o)[:30])
def test_meta_of_any_shape(tmp_path, meta):
    with refused('meta|Labels'): read_images(write(dict(d=py | {'batches.meta': pickle.dumps(meta)}), tmp_path/'x.zip'))

@pytest.mark.parametrize('meta', [{}, dict(label_names=tuple(names10)), dict(label_names=np.array(names10)),
    dict(label_names=names10, num_vis=3)], ids=lambda o: str(o)[:20])
def test_meta_that_is_right(tmp_path, meta):
    assert read_images(write(dict(d=py | {'batches.meta': pickle.dumps(meta)}), tmp_path/'x.zip')).vocab==names10

@pytest.mark.parametrize('names,vocab', [(b'', names10), (b'\n\n', names10), ('\r\n'.join(names10).encode(), names10),
    ('\n'.join(['ice cream']+names10).encode(), ['ice cream']+names10),
    (b'a\nb\n', None), (b'a\n'*10, None), (b'\xff\xfe'*10, None)])
def test_names_of_binary_batches(tmp_path, names, vocab):
    path = write(dict(d=bn | {'batches.meta.txt': names}), tmp_path/'x.zip')
    if vocab: assert read_images(path).vocab==vocab
    else:
        with refused(): read_images(path)

def test_pickles_ask_for_no_memory():
    "An index of two billion into a pickle's table of objects costs nothing"
    bomb = b'\x80\x02]r\xff\xff\xff\x7f.'
    with refused('x is damaged .index 2147483647'): unpickle_arrays(bomb, 'x')
    big = b'\x80\x04\x8e'+struct.pack('<Q', 1<<45)+b'abc.'
    with refused('x is damaged'): unpickle_arrays(big, 'x')

@pytest.mark.parametrize('layout', ['py','bin','images'])
@pytest.mark.parametrize('suffix', ['','.zip','.tar','.tgz'])
def test_damage_of_every_kind(tmp_path, layout, suffix):
    "Bytes changed, cut, doubled and inserted at random: images or one sentence"
    rand = random.Random(f'{layout}{suffix}')
    small = dict(py={k: (pickle.dumps(dict(data=x[:2], labels=y[:2])) if 'meta' not in k else py[k])
        for k,(x,y) in [*b10.items(), ('batches.meta',(0,0))]},
        bin={k: v[:2*3073] if 'meta' not in k else v for k,v in bn.items()}, images=good)[layout]
    files = dict(d=small)
    whole = {k: v for k,v in small.items()} if not suffix else write(files, tmp_path/f'x{suffix}').read_bytes()
    def damage(data):
        data = bytearray(data)
        for _ in range(rand.choice([1,1,2,8])):
            i = rand.randrange(len(data) or 1) if rand.random()<0.5 else rand.randrange(min(len(data), 600) or 1)
            n = rand.choice([1,1,4,50])
            how = rand.choice('fxcdi')
            if how=='f': data[i:i+1] = bytes([(data[i:i+1] or b'\0')[0]^(1<<rand.randrange(8))])
            if how=='x': data[i:i+n] = rand.randbytes(n)
            if how=='c': del data[i:]
            if how=='d': data[i:i] = data[i:i+n]
            if how=='i': data[i:i] = rand.choice([b'\xff',b'\0',b'.',b'\x7f'])*n
        return bytes(data)
    ends = dict(images=0, refused=0)
    with time_limit(120), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for i in range(60):
            if suffix:
                path = tmp_path/f'y{suffix}'
                path.write_bytes(damage(whole))
            else:
                k = rand.choice(list(small))
                path = write(dict(d=small | {k: damage(small[k])}), tmp_path/'y')
            try: im = read_images(path)
            except UserError as e:
                ends['refused'] += 1
                assert str(e).isprintable()
            else:
                ends['images'] += 1
                assert check_images(im, path) is im
    assert ends['refused']>5

# Images

def saved(im, fmt, **kw):
    f = io.BytesIO()
    im.save(f, fmt, **kw)
    return f.getvalue()

ramp = np.arange(1024).reshape(32,32)

def read_one(tmp_path, data, name='1.png'):
    "What comes of an image file in a class folder, and handed to `predict`"
    root = write(dict(d={f'{s}/c/{name}': data for s in ('train','test')}), mkdir(tmp_path/'one', overwrite=True))
    res = read_images(root).train_x[0].numpy()
    assert np.array_equal(as_image(root/'d/train/c'/name), res) and np.array_equal(as_image(data), res)
    return res

@pytest.mark.parametrize('fmt', ['png','tiff','ppm'])
def test_16_bit_images(tmp_path, fmt):
    "Scaled: every level within half a step"
    v = (ramp*64).astype(np.uint16)
    if fmt=='ppm': data = b'P5 32 32 65535\n'+v.astype('>u2').tobytes()
    else: data = saved(Image.fromarray(v), fmt)
    got = read_one(tmp_path, data)
    assert (got==got[...,:1]).all() and np.abs(got[...,0]-v/257).max()<=0.5

def test_big_endian_16_bit_images():
    v = (ramp*64).astype(np.uint16)
    im = Image.frombytes('I;16B', (32,32), v.astype('>u2').tobytes())
    assert np.abs(as_image(im)[...,0]-v/257).max()<=0.5

@pytest.mark.parametrize('scale,ok', [(1, True), (1/255, True), (255, False), (-1, False), (float('nan'), False)])
def test_float_images(tmp_path, scale, ok):
    "Floats from 0 to 1"
    v = (ramp/1023*scale).astype(np.float32)
    data = saved(Image.fromarray(v), 'tiff')
    if ok: assert np.abs(read_one(tmp_path, data, '1.tif')[...,0]-v*255).max()<=0.5
    else:
        with refused(r'1.tif.* in \[0, 1\]'): read_one(tmp_path, data, '1.tif')
        with refused(r'in \[0, 1\]'): as_image(v)

@pytest.mark.parametrize('top,ok', [(255, True), (256, False), (70000, False), (-1, False)])
def test_32_bit_images(tmp_path, top, ok):
    v = np.clip(ramp, 0, 200).astype(np.int32)
    v[5,5] = top
    data = saved(Image.fromarray(v), 'tiff')
    if ok: assert np.array_equal(read_one(tmp_path, data, '1.tif')[...,0], v)
    else:
        with refused(r'1.tif.* in \[0, 255\]'): read_one(tmp_path, data, '1.tif')
        with refused(r'in \[0, 255\]'): as_image(v)

grey = (ramp//4).astype(np.uint8)
@pytest.mark.parametrize('mode', ['RGBA','LA','P','RGB','L'])
def test_transparent_images(tmp_path, mode):
    "Composited on white, however the file says that it is transparent; an opaque image is what it was"
    rgb,alpha = np.stack([grey,grey.T,255-grey], -1),np.repeat([0,255], 512).reshape(32,32).astype(np.uint8)
    alpha[:,0] = 128
    kw = {}
    if mode in ('RGBA','LA'):
        base = Image.fromarray(rgb) if mode=='RGBA' else Image.fromarray(grey)
        im = base.copy()
        im.putalpha(Image.fromarray(alpha))
        a = alpha[...,None]/255
    else: # one colour is transparent
        base = dict(P=Image.fromarray(rgb).quantize(16), RGB=Image.fromarray(rgb), L=Image.fromarray(grey))[mode]
        px = base.getpixel((0,20))
        kw,im = dict(transparency=px),base
        hit = np.asarray(base)==np.array(px)
        a = 1.-(hit.all(-1) if mode=='RGB' else hit)[...,None]
    got = read_one(tmp_path, saved(im, 'png', **kw))
    assert np.abs(got-(np.asarray(base.convert('RGB'))*a+255*(1-a))).max()<=1
    assert 0<(a==1).mean()<1
    im = base.convert('RGBA')
    assert np.array_equal(read_one(tmp_path, saved(im, 'png')), np.asarray(base.convert('RGB')))

@pytest.mark.parametrize('mode,fmt', [('RGB','png'), ('L','png'), ('1','png'), ('P','png'), ('P','gif'), ('RGB','jpeg'),
    ('L','jpeg'), ('CMYK','jpeg'), ('RGB','bmp'), ('RGB','webp'), ('RGB','tiff'),
    ('RGB','ppm'), ('L','ppm')])
def test_ordinary_images_are_what_they_were(tmp_path, mode, fmt):
    data = saved(Image.fromarray(np.stack([grey,grey.T,255-grey], -1)).convert(mode), fmt)
    assert np.array_equal(read_one(tmp_path, data), np.asarray(Image.open(io.BytesIO(data)).convert('RGB')))

def test_only_formats_of_images(tmp_path):
    "Pillow knows formats that start programs, by content, whatever the name"
    eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n'
    started = []
    from PIL import EpsImagePlugin
    old = EpsImagePlugin.Ghostscript
    EpsImagePlugin.Ghostscript = lambda *a, **k: started.append(a) or Image.new('RGB', (32,32))
    try:
        with refused('1.png'): read_one(tmp_path, eps)
        with refused(): as_image(eps)
        with refused(): as_image(io.BytesIO(eps))
    finally: EpsImagePlugin.Ghostscript = old
    assert not started
    for fmt in ('pcx','sgi','tga','dds','im','ico','pdf'):
        with suppress(KeyError):
            data = saved(Image.new('RGB', (32,32)), fmt)
            with refused('1.png'): read_one(tmp_path, data)

def huge_png(w, h):
    import zlib
    def chunk(k, d): return struct.pack('>I', len(d))+k+d+struct.pack('>I', zlib.crc32(k+d))
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0))+chunk(b'IDAT',
        zlib.compress(b''))+chunk(b'IEND', b'')

@pytest.mark.parametrize('w,h', [(9000,9000), (12000,12000), (60000,60000), (2**31-1,2**31-1), (70_000_000,1)])
def test_pixels_have_a_limit(tmp_path, w, h):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with refused(r'1.png.* is not a readable image \(.*pixels.*(the limit is|exceeds)'):
            read_one(tmp_path, huge_png(w, h))

def forms(x):
    "A grey image `x`, `(h,w)`, in every usual form"
    t = torch.from_numpy(x)
    yield from (x, x[None], x[...,None], t, t[None], t[...,None], TensorImage(t[None]), np.asfortranarray(x),
        x[::-1][::-1])
    yield from (np.repeat(x[...,None], 3, -1), np.repeat(x[None], 3, 0), t.expand(3,-1,-1), t[...,None].expand(-1,-1,3),
        Image.fromarray(x))
    yield from (x.astype(int), t.long(), x.astype(np.uint16)*257, (x/255), (t/255), (t/255).half(),
        (x/255).astype(np.float16))
    yield from (np.dstack([x,x,x,np.full_like(x, 255)]), torch.stack([t,t,t,torch.full_like(t, 255)]))

@pytest.mark.parametrize('i', range(23))
def test_grey_images_in_every_form(i):
    small = np.ascontiguousarray(grey[:20,:24])
    for x in (grey,small):
        got = as_image(list(forms(x))[i])
        assert np.array_equal(got, as_image(Image.fromarray(x).convert('RGB')))
    assert len(list(forms(grey)))==23

def test_black_and_white_arrays():
    b = ramp%3==0
    assert np.array_equal(as_image(b)[...,0], b*255) and np.array_equal(as_image(torch.from_numpy(b)[None])[...,0],
        b*255)

@pytest.mark.parametrize('o', [np.zeros((2,32,32,3), np.uint8), torch.zeros(1,3,32,32), np.zeros(5), np.array(3),
    torch.tensor(1.), np.zeros((0,32), np.uint8), np.zeros((32,0,3)), np.zeros((7,32,9), np.uint8),
    np.full((32,32), 1.1), np.full((32,32), -.1), np.full((32,32), 200.), torch.linspace(-1, 2, 3072).view(3,32,32),
    torch.full((3,32,32), float('inf')),
    np.full((32,32), np.nan), np.full((32,32), 300),
    np.zeros((32,32), complex), np.zeros((32,32), object), np.full((32,32), 'a'), (), [], None, 3, b'',
    b'nope', '', 'a\0b',
    'x'*5000, '/dev/zero', object(), {}], ids=lambda o: 'object' if type(o) is object else str(o)[:25])
def test_what_is_no_image(o):
    with time_limit(), refused('cannot be read'): as_image(o)

def test_float_images_may_round():
    "What a resize leaves a rounding error outside"
    assert as_image(np.full((32,32), 1+1e-6)).max()==255 and as_image(np.full((32,32), -1e-6)).min()==0

@pytest.mark.parametrize('label', [3.7, -1, 10, None, [1], 'x', True, torch.tensor([1,2]), float('nan'), 10**30])
def test_labels_of_items(label):
    vocab = CategoryMap([str(i) for i in range(10)], sort=False)
    with refused(): as_label((grey,label), vocab)
    for bad in ((grey,), grey, object(), 3):
        with refused(): as_label(bad, vocab)
    assert [as_label((grey,o), vocab) for o in (3, np.int64(3), torch.tensor(3), '3')]==[3]*4
