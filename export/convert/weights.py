#!/usr/bin/env python3
"""Turns a checkpoint that is a file of PyTorch (.pth, .pt, .ckpt, .bin) into safetensors.

    python export/convert/weights.py Wan2.1_VAE.pth -o Wan2.1_VAE.safetensors

Names, types and numbers stay as they are. The tensors may stand at the top of the file, or below `state_dict`, `model`, `module` or
`params`. PyTorch is not needed, and no code of the file is run (see torch_file.py).
"""

import argparse
import os
import sys
import zipfile
from pathlib import Path

from torch_file import Refused, read_archive, tensors_of, write_safetensors

BELOW = ("state_dict", "model", "module", "params")


def convert(source, target):
    state = read_archive(source)
    found = [key for key in BELOW if isinstance(state, dict) and isinstance(state.get(key), dict)]
    if len(found) > 1:
        raise Refused(f"tensors stand below {found}; expected one of these")
    tensors = tensors_of(state[found[0]] if found else state)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        write_safetensors(temporary, tensors)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return len(tensors)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="FILE.pth")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.safetensors")
    args = parser.parse_args()
    if args.output.exists():
        print(f"error: {args.output} is there already; name another file with -o", file=sys.stderr)
        return 9
    try:
        count = convert(args.checkpoint, args.output)
    except (Refused, OSError, zipfile.BadZipFile) as error:
        print(f"error: {args.checkpoint}: {error}", file=sys.stderr)
        return 3
    print(f"{args.output}: {count} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
