"""Write a trained network as one file for other programs.

python scripts/export.py checkpoint=runs/NAME/checkpoints/best.pt format=onnx [out=FILE]

onnx and torch_export: from uint8 RGB images [B, crop, crop, 3], of any batch size B, to
probabilities [B, classes]; mean subtraction and softmax are inside. safetensors: the weights and
the mean, by name. The metadata of all three has the names of the classes, one a line, under
`classes`, and the side of the crop under `crop`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from common.errors import UserError, one_sentence, refusing
from evaluation.classifier import Classifier, load_classifier

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors"}


@dataclass
class Options:
    """The command line, KEY=VALUE as for eval.py."""

    checkpoint: str
    format: str
    out: str = ""

    @property
    def file(self) -> Path:
        """Where to write: beside the checkpoint, by default."""
        return Path(self.out or Path(self.checkpoint).with_suffix(SUFFIXES[self.format]))


def parse(words: list[str]) -> Options:
    """The options; raises UserError for keys that are unknown or missing."""
    try:
        options = Options(**dict(word.split("=", 1) for word in words))
    except (ValueError, TypeError) as error:
        usage = f"checkpoint=FILE.pt format={'|'.join(SUFFIXES)} [out=FILE]"
        raise UserError(f"usage: python scripts/export.py {usage}") from error
    if options.format not in SUFFIXES:
        raise UserError(f"format={options.format} is unknown: take one of {', '.join(SUFFIXES)}")
    return options


def export(classifier: Classifier, kind: str, out: Path) -> None:
    """Write the file; it appears at once, complete."""
    part = out.with_name(f".{out.name}.part{out.suffix}")
    metadata = {"classes": "\n".join(classifier.classes), "crop": str(classifier.crop)}
    side = classifier.crop
    images = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    batch = {"images": {0: torch.export.Dim("batch", min=1)}}
    try:
        part.touch()  # raises before the work if nothing can be written there
        if kind == "safetensors":
            from safetensors.torch import save_file

            tensors = {name: value.contiguous() for name, value in classifier.state_dict().items()}
            save_file(tensors, part, metadata)
        elif kind == "torch_export":
            program = torch.export.export(classifier, (images,), dynamic_shapes=batch)
            torch.export.save(program, part, extra_files=dict(metadata))
        else:
            model = torch.onnx.export(
                classifier,
                (images,),
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes=batch,
                dynamo=True,
                verbose=False,
            )
            assert model is not None
            model.model.metadata_props.update(metadata)
            model.save(part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def main() -> None:
    """Export the checkpoint that the command line names."""
    with one_sentence():
        options = parse(sys.argv[1:])
        classifier = load_classifier(Path(options.checkpoint))
        with (
            refusing(ModuleNotFoundError, also="see requirements.txt"),
            refusing(OSError, what=f"cannot write {options.file}"),
        ):
            export(classifier, options.format, options.file)
        print(f"written: {options.file}")


if __name__ == "__main__":
    main()
