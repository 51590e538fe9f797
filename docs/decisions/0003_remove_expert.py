import sys, json, hashlib
from pathlib import Path
from safetensors.torch import load_file, save
src, dst = Path(sys.argv[1]), Path(sys.argv[2])
t = load_file(src)
dead = [k for k in t if k.startswith("experts.experts.5.")]
assert dead
t = {k: v.contiguous() for k, v in t.items() if k not in dead}
blob = save(t); card = json.loads(src.with_suffix(".json").read_text())
card["config"]["n_experts"] = 5; card["sha256"] = hashlib.sha256(blob).hexdigest()
dst.write_bytes(blob); dst.with_suffix(".json").write_text(json.dumps(card, indent=1))
