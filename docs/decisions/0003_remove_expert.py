"""Take the last expert, which no point is sent to, out of a model's file.

The coordinate of the router is E σ(x) up to E − 1 (it was (E − 1) σ(x) when the model was trained
with six): the functional with one expert less is the same wherever the last one was not used.
Run: python 0003_remove_expert.py MODEL.safetensors OUT.safetensors
"""

import hashlib
import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save


def main(model: Path, out: Path) -> None:
    """Write the smaller model and its card."""
    card = json.loads(model.with_suffix(".json").read_text())
    last = card["config"]["n_experts"] - 1
    tensors = {
        name: tensor.contiguous()
        for name, tensor in load_file(model).items()
        if not name.startswith(f"experts.experts.{last}.")
    }
    blob = save(tensors)
    card["config"]["n_experts"] = last
    card["sha256"] = hashlib.sha256(blob).hexdigest()
    out.write_bytes(blob)
    out.with_suffix(".json").write_text(json.dumps(card, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
