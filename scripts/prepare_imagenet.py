"""From the official tars of ImageNet 2012 to a data set that is known to be intact.

python scripts/prepare_imagenet.py check ROOT [--no-md5] [--decode]
python scripts/prepare_imagenet.py mean ROOT [--crop 224] [--out FILE.npy]
python scripts/prepare_imagenet.py extract ROOT OUT [--splits train val test]
python scripts/prepare_imagenet.py subset ROOT OUT [--classes N] [--per-class N | --images N]

ROOT holds the tars as downloaded and the devkit, or train/ and val/, or what Kaggle gives. Training
reads all of these: extract only if you want files. Every command may be interrupted and repeated.
"""

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in train.py

import numpy as np
from tqdm import tqdm

from common.errors import UserError, one_sentence, refusing
from common.files import try_to_write, write_atomically
from common.machine import num_cpus
from configs.schema import DataConfig
from configs.validate import require
from data.prepare.check import SPLITS
from data.prepare.check import check as find_faults
from data.prepare.release import ILSVRC2012
from data.prepare.write import WRITERS, subset_index, write_splits
from data.sources.folders import refuse_closed
from data.sources.imagenet import TARS, find_tar
from data.sources.index import ImageIndex, index_tar, scan_folder


def check(arguments: argparse.Namespace) -> None:
    """List what is there and what is wrong with it; fails if anything is."""
    root, decode = arguments.root, arguments.workers if arguments.decode else 0
    faults = find_faults(root, ILSVRC2012, tqdm.write, md5=arguments.md5, decode=decode)
    if faults:
        number = "one thing is" if len(faults) == 1 else f"{len(faults)} things are"
        raise UserError(f"{number} wrong with {root}, see above")
    print(f"{root} is as it should be")


def extract(arguments: argparse.Namespace) -> None:
    """Write the tars' images as class folders."""
    root = arguments.root
    refuse_closed(root)
    splits = arguments.splits or [split for split in SPLITS if find_tar(root, split)]
    if not splits:
        raise UserError(f"{root} holds none of ImageNet's tars, such as {TARS['train'][0]}")
    _write(arguments, {split: index_tar(root, split) for split in splits})


def subset(arguments: argparse.Namespace) -> None:
    """Write the first classes or images of a data set as class folders."""
    root, out = arguments.root, arguments.out
    amounts = {name: getattr(arguments, name) for name in ("classes", "images", "per_class")}
    if not any(amounts.values()):
        raise UserError("subset needs --classes, --per-class or --images")
    if out.resolve() == root.resolve():
        raise UserError(f"{out} is the data set itself: name another folder for its subset")
    _write(arguments, {split: subset_index(root, split, **amounts) for split in ("train", "val")})
    print(f"to train on it, type data=folder data.root={out}")


def _write(arguments: argparse.Namespace, indexes: dict[str, ImageIndex]) -> None:
    left_alone = []
    for split, written in write_splits(arguments.out, indexes, arguments.workers).items():
        print(
            f"{arguments.out / split}: {written.num_images:,} images written, into "
            f"{written.num_folders:,} folders; {written.num_finished:,} more were already there"
        )
        left_alone += written.left_alone
    if left_alone:
        more = f" (and {len(left_alone) - 1:,} more)" if left_alone[1:] else ""
        raise UserError(
            f"{left_alone[0]}{more} is not what would be written there, and was left alone: remove "
            "it and type the same command again"
        )


def mean(arguments: argparse.Namespace) -> None:
    """Write the mean image of the training set, and the statistics of its colours."""
    from data.prepare.mean_image import statistics, table, to_json  # imports torch: seconds

    crop, root = arguments.crop, arguments.root
    scale = DataConfig(crop=crop, val_scale=arguments.scale).validation_scale
    require(scale >= crop, f"--scale {scale} is smaller than --crop {crop}: no crop fits")
    out = arguments.out or Path("datasets") / f"mean-{root.resolve().name}-{crop}.npy"
    require(out.suffix == ".npy", f"--out {out} must end in .npy")
    for path in (out, out.with_suffix(".json")):
        require(
            arguments.force or not os.path.lexists(path),
            f"{path} is there already: give --force to replace it, or --out for another name",
        )
    with refusing(OSError, what=f"cannot write {out}"):  # now, not after an hour of decoding
        out.parent.mkdir(parents=True, exist_ok=True)
        try_to_write(out)
    train = scan_folder(root, "train")
    result = statistics(
        train, crop=crop, scale=scale, num_workers=arguments.workers, skip=arguments.skip
    )
    text = json.dumps(to_json(result, scale, train.fingerprint()), indent=1) + "\n"
    image = result.mean.astype(np.float32)
    write_atomically(out.with_suffix(".json"), lambda file: file.write(text.encode()))
    write_atomically(out, lambda file: np.save(file, image, allow_pickle=False))
    print(table(result))
    print(f"{result.num_images:,} images: to use the mean image, type data.mean={out}")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="check|mean|extract|subset")
    parsers = {}
    for run in (check, mean, extract, subset):
        parsers[run] = command = commands.add_parser(run.__name__, help=run.__doc__)
        command.set_defaults(run=run)
        add = command.add_argument
        add("root", type=_path, metavar="ROOT", help="the tars, or train/ and val/")
        writes = run in (extract, subset)
        if writes:
            add("out", type=_path, metavar="OUT", help="for train/, val/ and test/")
        default = WRITERS if writes else num_cpus()
        text = f"{'threads' if writes else 'processes'}: {default}"
        add("--workers", type=_positive, default=default, help=text)
    add = parsers[check].add_argument
    add("--no-md5", dest="md5", action="store_false", help="do not compare MD5 sums")
    add("--decode", action="store_true", help="decode all images, list the odd ones")
    add = parsers[mean].add_argument
    add("--crop", type=_positive, default=224, help="side of the mean image: 224")
    add("--scale", type=_positive, help="shorter side of the images; default: crop * 256 / 224")
    add("--out", type=Path, help="default: datasets/mean-NAME_OF_ROOT-CROP.npy")
    add("--skip", action="store_true", help="leave unreadable images out")
    add("--force", action="store_true", help="replace the files that are there")
    add = parsers[extract].add_argument
    add("--splits", nargs="+", choices=SPLITS, help="default: all tars that are there")
    parsers[subset].add_argument("--classes", type=_positive, help="the first N classes")
    add = parsers[subset].add_mutually_exclusive_group().add_argument
    add("--per-class", type=_positive, help="the first N images of each class")
    add("--images", type=_positive, help="N images in all, spread evenly over the classes")
    return parser


def main() -> None:
    """Run the command that the command line names."""
    arguments = _parser().parse_args()
    with one_sentence():
        try:
            arguments.run(arguments)
        except KeyboardInterrupt:
            print("interrupted: the same command continues where it can", file=sys.stderr)
            sys.exit(130)


if __name__ == "__main__":
    main()
