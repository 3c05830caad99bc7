"""Real review logs through every data stage: each cell of the paper has examples, nothing leaks."""

from pathlib import Path

import pytest

from instructrec_jax import files
from instructrec_jax.data.settings import PrepareSettings
from instructrec_jax.stages.annotate import annotate
from instructrec_jax.stages.build import BuildSettings, build
from instructrec_jax.stages.inspect import inspect
from instructrec_jax.stages.lint import lint
from instructrec_jax.stages.prepare import prepare

SHARED = Path(__file__).parents[2] / "shared" / "data"
MUSIC = "amazon-reviews-digital-music-2014"
TOLERANT = PrepareSettings(on_damage="skip")
NAMELESS = PrepareSettings(title_fallback="category_asin", allow_fewer_candidates=True)

pytestmark = [pytest.mark.real_data, pytest.mark.slow]


@pytest.fixture(scope="module")
def records_of(tmp_path_factory):
    """Runs the data stages but `lint`, once on each set; returns the folder of the records."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data are not at {SHARED}")
    made: dict[str, Path] = {}

    def run(folder: str, settings: PrepareSettings | None = None) -> Path:
        if folder not in made:
            made[folder] = stages(SHARED / folder, tmp_path_factory.mktemp("set"), settings)
        return made[folder]

    return run


def stages(logs: Path, root: Path, settings: PrepareSettings | None) -> Path:
    prepared, texts, records = root / "prepared", root / "texts", root / "records"
    prepare(dataset="shop", input_dir=logs, output_dir=prepared, settings=settings)
    annotate(dataset="shop", input_dir=prepared, output_dir=texts)
    build(
        dataset="shop",
        input_dir=prepared,
        texts_dir=texts,
        output_dir=records,
        settings=BuildSettings(max_train_positions=2),
    )
    (example,) = inspect("shop.C10.vague", data_dir=records, num_examples=1)
    assert example.inputs.startswith("Query: ")
    return records


def run_lint(records: Path):
    """Returns what `lint` finds; a few examples of each task tell what many would."""
    return lint(dataset="shop", data_dir=records, max_examples=8)


@pytest.mark.parametrize("folder", [MUSIC, "amazon-reviews-gift-cards-2018"])
def test_every_cell_of_the_paper_is_filled(records_of, folder):
    found = run_lint(records_of(folder))
    assert found.num_errors == 0, [finding.message for finding in found.findings]
    assert len({row.template_id for row in found.coverage}) == 39
    for row in found.coverage:
        assert row.counts["train"] > 0, row.task
        assert row.counts["test"] > 0 or not row.is_evaluated, row.task


def test_items_without_titles_are_named_and_their_missing_categories_told(records_of):
    found = run_lint(records_of("amazon-reviews-all-beauty-2018", NAMELESS))
    assert found.num_errors == 0, [finding.message for finding in found.findings]
    reasons = {row.reason for row in found.coverage if not row.counts["train"]}
    assert reasons == {"no categories"}


def test_the_whole_lines_of_truncated_files_give_the_same_prepared_data(records_of, tmp_path):
    whole = records_of(MUSIC).parent / "prepared"
    logs = SHARED / MUSIC / "truncated"
    prepare(dataset="shop", input_dir=logs, output_dir=tmp_path / "cut", settings=TOLERANT)
    names = {path.name for path in whole.iterdir()}
    assert names == {path.name for path in (tmp_path / "cut").iterdir()}
    for name in names - {"manifest.json"}:
        assert files.sha256(whole / name) == files.sha256(tmp_path / "cut" / name), name
