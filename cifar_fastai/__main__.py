"Commands as `python -m cifar_fastai train ...`, for launchers that start a module"
import sys
from cifar_fastai import cli
from cifar_fastai.core import short

commands = {k.removeprefix('cifar_').replace('_', '-'):getattr(cli, k) for k in cli.__all__ if k.startswith('cifar_')}

def main():
    "Run the command that is named by the first argument"
    name = sys.argv[1] if len(sys.argv)>1 else ''
    if name not in commands:
        sys.exit(f"python -m cifar_fastai: the command is {short(name)}: it must be one of {', '.join(commands)}.")
    sys.argv = [f'cifar-{name}', *sys.argv[2:]]
    commands[name]()

if __name__=='__main__': main()
