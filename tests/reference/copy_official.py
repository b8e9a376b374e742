"""Copies the golden data made by the official Video2LoRA code into the fixtures.

Run: python tests/reference/copy_official.py SOURCE [--out DIR]

SOURCE is a directory with the cases (open_d*/, open_fun_vae/) and their README.md, which says how
they were made; everything lands in official/, byte for byte.
"""

import argparse
import shutil
from pathlib import Path

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=FIXTURES, help="default: tests/fixtures")
    arguments = parser.parse_args()
    for path in sorted(arguments.source.rglob("*")):
        if path.is_file():
            target = arguments.out / "official" / path.relative_to(arguments.source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)  # contents only: the source may be read-only
            print(f"{target.stat().st_size:9d}  {target.relative_to(arguments.out)}")


if __name__ == "__main__":
    main()
