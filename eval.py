"""Test trained networks: `python eval.py checkpoint=runs/NAME/checkpoints/best.pt views=dense`.

`checkpoint=[a.pt,b.pt,...]` is an ensemble; a .npz file of save_predictions= may stand for one.
`split=test` writes the ILSVRC submission file, `images=[a.jpg,...]` names what is in pictures.
"""

import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in train.py

from configs.help import answer_help
from configs.schema import EvalConfig

if __name__ == "__main__":
    answer_help(EvalConfig)  # before torch is loaded

import hydra
from omegaconf import DictConfig

from common.errors import one_sentence
from configs.store import register, to_config
from configs.validate import validate_eval
from engine.distributed import World, open_world
from engine.stopping import StopRequest
from evaluation.checkpoint_scores import open_member
from evaluation.outcome import outcome, refuse_overwriting
from evaluation.predictions import ensemble, save_predictions
from evaluation.result import result_path, write_result

register()


def evaluate(config: EvalConfig, world: World) -> None:
    """Evaluate every network, combine, print what was found, write the result file."""
    validate_eval(config)
    paths = [Path(path) for path in config.checkpoints]
    out = result_path(config, paths)
    refuse_overwriting(config, out)
    parts = out.with_suffix(".parts")
    with StopRequest(world) as stop:
        members = {str(path): open_member(path, config, stop, parts) for path in paths}
    world.barrier()  # all have read the parts, which the main process takes away
    predictions = {name: member.predictions for name, member in members.items()}
    combined = ensemble(predictions, config.weights)
    found = outcome(config, members, combined)
    if not world.is_main:
        return
    print(f"{', '.join(members)}: views={config.views}")
    print(found.text)
    if config.save_predictions:
        save_predictions(Path(config.save_predictions), combined)
    write_result(out, found.result)
    others = found.write_others(out)
    shutil.rmtree(parts, ignore_errors=True)
    print(f"written: {', '.join(map(str, [out, *others]))}")


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(raw: DictConfig) -> None:
    """Compose, validate, evaluate."""
    with one_sentence():
        config = to_config(raw, EvalConfig)
        with open_world(config.device, config.timeout) as world:
            evaluate(config, world)


if __name__ == "__main__":
    main()
