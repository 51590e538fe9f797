"""Networks of others: trained by the same command, scored as rows of the same table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from networks import random_functional
from taufree.comparators import training
from taufree.comparators.trained import Architecture, Comparator, load_comparator
from taufree.data.generate import calculate
from taufree.data.store import digest, entries_of, load_record, write_manifest, write_record
from taufree.data.systems import registry
from taufree.errors import UserError, WeightsError
from taufree.evaluation import density, invariance
from taufree.model.storage import origin
from taufree.training.config import read_config
from tolerances import SUM_ROUNDING

SIZES = {
    "expert_transformers": {"width": 8, "n_layers": 1, "n_heads": 2, "chunk": 300},
    "linear_attention": {"width": 8, "n_blocks": 1},
}
LEVEL = 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lithium trains, CH is of the test split."""
    folder = tmp_path_factory.mktemp("data")
    entries = {}
    for name in ("Li", "CH"):
        system = replace(registry()[name], basis="sto-3g")
        entries[name] = write_record(folder, calculate(system, (LEVEL,)), digest(system, (LEVEL,)))
    write_manifest(folder, entries)
    return folder


def config(kind: str, data: Path, out: Path, steps: int = 4) -> Path:
    """A TOML file of a short run."""
    sizes = ", ".join(f"{key} = {value}" for key, value in SIZES[kind].items())
    out.mkdir(exist_ok=True)
    path = out / "run.toml"
    path.write_text(
        f'data = "{data}"\nout = "{out}"\nname = "other"\nsteps = {steps}\npoints = 400\n'
        f'kinds = ["g2"]\nlevels = [{LEVEL}]\ncheckpoint_every = 2\n'
        f'[architecture]\ncomparator = "{kind}"\nnetwork = {{ {sizes} }}\n'
    )
    return path


@pytest.mark.parametrize("kind", SIZES)
def test_it_trains_goes_on_and_becomes_a_row(
    kind: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(kind, data, tmp_path / "whole")
    assert training.is_comparator(path)
    whole = training.train(path)
    assert whole["steps"] == 4 and whole["l1_mha_per_electron"] > 0

    again = config(kind, data, tmp_path / "again")
    plain = training.draw

    def break_off(*args: object) -> object:
        if list((tmp_path / "again").glob("checkpoint*")):
            raise KeyboardInterrupt
        return plain(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(training, "draw", break_off)
        with pytest.raises(KeyboardInterrupt):
            training.train(again)
    resumed = training.train(again)
    first, second = (load_file(r["weights"]) for r in (whole, resumed))
    assert all(torch.equal(first[key], second[key]) for key in first)

    other = load_comparator(Path(whole["weights"]))
    model = random_functional(roughness=1.0)
    result = density.evaluate(model, data, "test", LEVEL, comparators=[other])
    (line,) = result["systems"]
    assert line["errors"]["other"].keys() >= {"de_x_mha", "l1_mha", "vrho_mha", "vtau"}
    assert result["means"]["all molecules"]["other"]["l1_mha"] == line["errors"]["other"]["l1_mha"]


def test_it_goes_on_from_other_weights(data: Path, tmp_path: Path) -> None:
    first = training.train(config("linear_attention", data, tmp_path / "first"))
    path = config("linear_attention", data, tmp_path / "second", steps=1)
    plain = path.read_text()
    path.write_text(f'start = "{first["weights"]}"\nlearning_rate = 1e-9\n' + plain)
    second = training.train(path)
    before, after = (load_file(r["weights"]) for r in (first, second))
    assert all(torch.allclose(before[key], after[key], atol=1e-7) for key in before)
    assert origin(Path(second["weights"]))["start"]["training"]["steps"] == 4

    path.write_text(path.read_text().replace("n_blocks = 1", "n_blocks = 2"))
    with pytest.raises(UserError, match="another architecture"):
        training.train(path, resume=False)


def test_weights_are_rounded_to_half_precision(data: Path, tmp_path: Path) -> None:
    path = config("expert_transformers", data, tmp_path / "single", steps=1)
    single = load_file(training.train(path)["weights"])
    path.write_text("half_precision = true\n" + path.read_text())
    weights = training.train(path, resume=False)["weights"]
    half = load_file(weights)
    assert all(torch.equal(half[key], single[key].half()) for key in single)
    known = load_comparator(Path(weights)).network.state_dict()
    assert all(torch.equal(known[key].cpu(), half[key].float()) for key in half)


def test_transformers_go_on_wider(data: Path, tmp_path: Path) -> None:
    first = training.train(config("expert_transformers", data, tmp_path / "first"))
    path = config("expert_transformers", data, tmp_path / "second", steps=1)
    plain = path.read_text()
    head = f'start = "{first["weights"]}"\nlearning_rate = 1e-9\n'
    path.write_text(head + plain.replace("width = 8", "width = 16"))
    narrow, wide = (load_comparator(Path(r["weights"])) for r in (first, training.train(path)))
    record = load_record(data / entries_of(data, "test", None)[0].file, [LEVEL], ["converged"])[0]
    assert wide.errors(record) == pytest.approx(narrow.errors(record), rel=1e-3)

    path.write_text(head + plain.replace("n_heads = 2", "n_heads = 4"))
    with pytest.raises(UserError, match="another architecture"):
        training.train(path, resume=False)


def test_linear_attention_learns_where_exchange_is_flat(data: Path, tmp_path: Path) -> None:
    """F_x of MS2 depends on α − 1 to third order only, and a fresh network begins near α = 1."""
    settings = read_config(config("linear_attention", data, tmp_path), training.ComparatorConfig)
    densities = training.load_densities(settings, torch.device("cpu"))
    network = settings.architecture.build()
    torch.nn.init.zeros_(network.out.weight)  # type: ignore[union-attr, arg-type]
    torch.nn.init.zeros_(network.out.bias)  # type: ignore[union-attr, arg-type]
    generator = torch.Generator().manual_seed(0)
    points, electrons = training.draw(settings, densities, generator)
    loss, _ = training.losses(network, points, electrons, generator)
    loss.backward()
    slope = network.out.bias.grad  # type: ignore[union-attr]
    assert abs(float(slope)) > 1e-3  # Ha per electron and unit of log α


def test_kinds_choose_what_is_learned(data: Path, tmp_path: Path) -> None:
    path = config("linear_attention", data, tmp_path / "run")
    path.write_text(path.read_text().replace('kinds = ["g2"]', 'kinds = ["crystals"]'))
    with pytest.raises(UserError, match="no train densities of crystals"):
        training.train(path)


def test_invariance_is_kept_or_lost_as_the_architectures_have_it(data: Path) -> None:
    """Ours keeps it to rounding; transformers over chunks of points at absolute places do not."""
    torch.manual_seed(3)
    names = {"experts": "expert_transformers", "linear": "linear_attention"}
    others = [
        Comparator(Architecture(comparator=kind, network=SIZES[kind]).build(), name)
        for name, kind in names.items()
    ]
    result = invariance.evaluate(random_functional(), data, others, ["CH"], LEVEL)
    (line,) = result["systems"]
    changes = line["changes_mha"]
    assert max(abs(x) for x in changes["model"].values()) < 1e3 * 100 * SUM_ROUNDING  # of 9 Ha
    assert all(abs(x) > 1e-4 for x in changes["experts"].values())
    assert changes["linear"].keys() == changes["model"].keys()  # axes of CH are degenerate: any
    invariance.table(result)


@pytest.mark.parametrize("kind", SIZES)
def test_exchange_energy_is_that_of_the_errors(data: Path, kind: str) -> None:
    other = Comparator(Architecture(comparator=kind, network=SIZES[kind]).build(), kind).double()
    for record in load_record(data / entries_of(data, "test", None)[0].file, [LEVEL]):
        parents = float(record.density.integral(record.exc))
        off = 1000 * (other.exchange_energy(record) - parents)
        assert other.errors(record)["de_x_mha"] == pytest.approx(off, rel=1e-9)


def test_a_spin_channel_without_electrons_has_no_energy() -> None:
    """That of hydrogen's other spin."""
    kind = "expert_transformers"
    other = Comparator(Architecture(comparator=kind, network=SIZES[kind]).build(), kind)
    none = torch.zeros(5, dtype=torch.float64)
    found = other.exchange(none, torch.zeros(5, 3).double(), none, none, torch.rand(5, 3).double())
    assert all(not x.any() for x in (found.exc, found.vrho, found.vsigma, found.vtau))


def test_what_is_no_comparator_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="train one"):
        load_comparator(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="depth"):
        Architecture(comparator="linear_attention", network={"depth": 2}).build()
    path = config("linear_attention", data, tmp_path / "run")
    path.write_text(path.read_text().replace("points = 400", "points = 1"))
    with pytest.raises(UserError, match="points"):
        training.train(path)
    model = random_functional()
    build = Architecture(comparator="linear_attention", parent="r2scan").build
    with pytest.raises(UserError, match="stands for R2SCAN"):
        density.evaluate(model, data, "test", LEVEL, comparators=[Comparator(build(), "other")])
    with pytest.raises(UserError, match="stands for R2SCAN"):
        invariance.evaluate(model, data, [Comparator(build(), "other")], ["CH"], LEVEL)
    twins = [Comparator(Architecture(comparator="linear_attention").build(), "one")] * 2
    with pytest.raises(UserError, match="two rows would be named one"):
        density.evaluate(model, data, "test", LEVEL, comparators=twins)
