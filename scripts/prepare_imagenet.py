"""From the official tars of ImageNet 2012 to a data set that is known to be whole.

python scripts/prepare_imagenet.py check ROOT [--no-md5] [--decode]
python scripts/prepare_imagenet.py mean ROOT [--crop 224] [--out FILE.npy]
python scripts/prepare_imagenet.py extract ROOT OUT [--splits train val test] [--partial]
python scripts/prepare_imagenet.py subset ROOT OUT [--classes N] [--per-class N | --images N]

ROOT holds the tars, as downloaded, and the devkit; or train/ and val/. Training reads either:
extracting is for those who want the files. Each command can be cut off and given again.
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
from common.files import write_atomically
from common.machine import num_cpus
from configs.schema import DataConfig
from configs.validate import require
from data.prepare.check import SPLITS, Report
from data.prepare.check import check as run_checks
from data.prepare.choose import subset_index, tar_index
from data.prepare.facts import ILSVRC2012, read_facts
from data.prepare.write import WRITERS, write_splits
from data.sources.folders import refuse_closed
from data.sources.imagenet import TARS, find_tar
from data.sources.index import ImageIndex, scan_folder


def check(arguments: argparse.Namespace) -> None:
    """Tell what is there and what is wrong with it; refuses if anything is."""
    report = Report(tqdm.write)
    facts = read_facts(arguments.facts) if arguments.facts else ILSVRC2012
    workers = arguments.workers if arguments.decode else 0
    run_checks(arguments.root, facts, report, md5=arguments.md5, decode=workers)
    if report.wrong:
        number = "one thing is" if len(report.wrong) == 1 else f"{len(report.wrong)} things are"
        raise UserError(f"{number} wrong with {arguments.root}, see above")
    print(f"{arguments.root} is as it should be")


def extract(arguments: argparse.Namespace) -> None:
    """Write the tars' images as a folder layout."""
    root = arguments.root
    refuse_closed(root)
    splits = arguments.splits or [split for split in SPLITS if find_tar(root, split)]
    if not splits:
        raise UserError(f"{root} holds none of ImageNet's tars, such as {TARS['train'][0]}")
    indexes = {}
    for split in splits:
        indexes[split], faults = tar_index(root, split, arguments.partial)
        for fault in faults:
            print(f"not whole: {fault}", file=sys.stderr)
    _write(arguments, indexes)


def subset(arguments: argparse.Namespace) -> None:
    """Write the first classes or images of a data set as a folder layout."""
    root, out = arguments.root, arguments.out
    amounts = (arguments.classes, arguments.images, arguments.per_class)
    if all(amount is None for amount in amounts):
        raise UserError("subset needs --classes, --per-class or --images")
    if out.resolve() == root.resolve():
        raise UserError(f"{out} is the data set itself: name another folder for its subset")
    _write(arguments, {split: subset_index(root, split, *amounts) for split in ("train", "val")})
    print(f"to train on it, type data=folder data.root={out}")


def _write(arguments: argparse.Namespace, indexes: dict[str, ImageIndex]) -> None:
    odd = []
    for split, written in write_splits(arguments.out, indexes, arguments.workers).items():
        print(
            f"{arguments.out / split}: {written.num_images:,} images written, into "
            f"{written.num_folders:,} folders; {written.num_finished:,} more were there"
        )
        odd += written.left_alone
    if odd:
        raise UserError(
            f"{odd[0]} {f'(and {len(odd) - 1:,} more) ' if odd[1:] else ''}is not what would be "
            "written there, and was left alone: remove it and give the same command again"
        )


def mean(arguments: argparse.Namespace) -> None:
    """Write the mean image, and what else is known of the colours of the training set."""
    from data.prepare.mean_image import facts_of, statistics, table  # imports torch, in seconds

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
    with refusing(OSError, what=f"cannot write {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
    require(os.access(out.parent, os.W_OK), f"cannot write {out}: {out.parent} is not writable")
    train = scan_folder(root, "train")
    found = statistics(train, crop, scale, arguments.workers, arguments.skip)
    text = json.dumps(facts_of(found, scale, train.fingerprint()), indent=1) + "\n"
    image = found.mean.astype(np.float32)
    write_atomically(out.with_suffix(".json"), lambda file: file.write(text.encode()))
    write_atomically(out, lambda file: np.save(file, image, allow_pickle=False))
    print(table(found))
    print(f"{found.num_images:,} images: to use the mean image, type data.mean={out}")


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
    known = {run.__name__: run for run in (check, mean, extract, subset)}
    added = {name: commands.add_parser(name, help=run.__doc__) for name, run in known.items()}
    for name, one in added.items():
        one.set_defaults(run=known[name])
        one.add_argument("root", type=_path, metavar="ROOT", help="the tars, or train/ and val/")
        writes = name in ("extract", "subset")
        if writes:
            one.add_argument("out", type=_path, metavar="OUT", help="for train/, val/ and test/")
        what, default = ("threads", WRITERS) if writes else ("processes", num_cpus())
        one.add_argument("--workers", type=_positive, default=default, help=f"{what}: {default}")
    one = added["check"]
    one.add_argument("--no-md5", dest="md5", action="store_false", help="leave out the sums")
    one.add_argument("--decode", action="store_true", help="decode all images, list the odd ones")
    one.add_argument("--facts", type=Path, help="JSON: sums and numbers of another release")
    one = added["mean"]
    one.add_argument("--crop", type=_positive, default=224, help="side of the mean image: 224")
    one.add_argument("--scale", type=_positive, help="shorter side of the images; default: 256/224")
    one.add_argument("--out", type=Path, help="default: datasets/mean-NAME_OF_ROOT-CROP.npy")
    one.add_argument("--skip", action="store_true", help="leave unreadable images out")
    one.add_argument("--force", action="store_true", help="replace the files that are there")
    one = added["extract"]
    one.add_argument("--splits", nargs="+", choices=SPLITS, help="default: all tars that are there")
    one.add_argument("--partial", action="store_true", help="what is whole of a damaged tar")
    one = added["subset"]
    one.add_argument("--classes", type=_positive, help="the first N classes")
    amount = one.add_mutually_exclusive_group()
    amount.add_argument("--per-class", type=_positive, help="the first N images of each class")
    amount.add_argument("--images", type=_positive, help="N images in all, evenly of the classes")
    return parser


def main() -> None:
    """Do what the command line says."""
    arguments = _parser().parse_args()
    try:
        with one_sentence():
            arguments.run(arguments)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it can", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
