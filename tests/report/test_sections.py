"""Tables and figures of the report, by hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from onnxpart.report.page import write
from onnxpart.report.records import read
from tests.networks.records import rows, run, table2, times, written


def page(folder: Path, records: Iterable[Any]) -> str:
    write(read([written(folder, records)]), folder / "out.md")
    return (folder / "out.md").read_text()


def test_table_1_has_sizes_and_speed_beside_the_papers(tmp_path: Path) -> None:
    found = rows(page(tmp_path, [times("mnist")]), "Table 1")
    assert found == {
        "1": ["431,080", "431,080", "1.00", "1.00", "1.00"],
        "2": ["109,295", "109,295", "3.33", "2.10", "3.00"],
    }


@pytest.mark.parametrize(("last", "told"), [(0.5, "it falls as K grows"), (0.95, "it does not fall")])
def test_diversity_is_a_mean_over_seeds(tmp_path: Path, last: float, told: str) -> None:
    found = [
        {"kind": "diversity", "experiment": "mnist", "k": k, "seed": seed, "epoch": 3, "correlation": value + seed / 10,
         "pairs": [[0.1, 0.2], [0.8, 0.9]] if seed == 0 else []}
        for k, value in ((2, 0.8), (5, last)) for seed in (0, 1)
    ]  # fmt: skip
    text = page(tmp_path, found)
    assert rows(text, "Figure 2")["2"] == ["2", "0.850 ± 0.071"]
    assert told in text
    assert (tmp_path / "out_figure2_2.svg").is_file()


def test_figure_3_has_parts_merged_and_final_errors(tmp_path: Path) -> None:
    found = [times("mnist"), run("mnist", "whole", [(1, 20)], 0, 0.02)]
    found += [run("mnist", "partition", [(2, at), (1, 20 - at)], 0, 0.01 + at / 1000) for at in (0, 10)]
    text = page(tmp_path, found)
    assert rows(text, "Figure 3")["1"] == ["1", "", "", "2.00", ""]
    assert rows(text, "Figure 3")["2"] == ["1", "6.00", "4.00", "2.00", "1.00"]


def test_table_2_by_hand(tmp_path: Path) -> None:
    text = page(tmp_path, table2())
    found = rows(text, "Table 2")
    assert found["original"][:4] == ["", "30.00 ± 1.41", "520.0", "0.80"]
    assert found["duplicated"][:4] == ["", "20.00 ± 1.41", "416.0", "1.00"]
    # 40 epochs of both parts together (5 s) or of one (3 s), and 12 of the duplicated whole (8 s)
    assert found["merged at 40"][:4] == ["22.50 ± 1.41", "20.50 ± 1.41", "296.0 / 216.0", "1.41 / 1.93"]
    assert found["merged at 40"][4:] == ["12.78 ± 0.16", "11.84 ± 0.21", "1.45 / 2.09"]
    assert "**Partitioning**: the latest merge" in text
    assert "at epoch 40: 1.41 times as fast in series and 1.93 times as fast in parallel." in text
    assert "**Net2WiderNet**: no merge has a mean error within one standard deviation" in text


def test_table_2_is_about_as_many_parts_as_the_duplicated_network(tmp_path: Path) -> None:
    others = [run("cifar10", "partition", [(4, 40), (1, 12)], seed, 0.9) for seed in (0, 1)]
    assert rows(page(tmp_path, [*table2(), *others]), "Table 2") == rows(page(tmp_path, table2()), "Table 2")


def test_time_to_the_baselines_error(tmp_path: Path) -> None:
    found = [times("language")]
    found += [run("language", "whole", [(1, n)], 0, error, rate="cosine") for n, error in ((20, 0.2), (10, 0.3))]
    found += [run("language", "whole", [(1, 20)], 0, 0.25)]
    found += [run("language", "partition", [(4, 10), (1, 1)], 0, error, rate="restart") for error in (0.2,)]
    found += [run("language", "levels", [(4, 4), (2, 2), (1, 1)], 0, 0.21, rate="restart", edges=0.5)]
    text = page(tmp_path, found)
    table = rows(text, "Time to the baseline's final error: a network")
    assert table["whole, 20 epochs"][-1] == "no", "the last row of that name has the other rate"
    assert "the baseline |" in text
    assert table["partition: 10 of K=4 + 1 of K=1"] == ["restart", "1", "20.00", "43.0 / 18.0", "4.65 / 11.11",
                                                        "yes"]  # fmt: skip
    levels = table["levels: 4 of K=4 + 2 of K=2 + 1 of K=1, new edges 0.5"]
    assert levels[-3:] == ["32.0 / 18.0", "6.25 / 11.11", "no"]
    assert "Fastest in series: partition: 10 of K=4 + 1 of K=1, 4.65 times as fast" in text
    assert "The whole alone, with fewer epochs, is not." in text


@pytest.mark.parametrize(
    ("k", "error", "outcome", "right"),
    [
        (4, 0.2, "25.00 ± 7.07 (2 seeds), 4.26 / 9.09", "yes"),
        (4, 0.3, "30.00 ± 0.00 (2 seeds), not as good", "no"),
        (2, 0.2, "25.00 ± 7.07 (2 seeds), 4.26 / 9.09", ""),
        (None, 0.2, "25.00 ± 7.07 (2 seeds), 4.26 / 9.09", "no"),
        (None, 0.3, "30.00 ± 0.00 (2 seeds), not as good", "yes"),
    ],
)
def test_advice_is_right_where_fit_paid(tmp_path: Path, k: int | None, error: float, outcome: str, right: str) -> None:
    """Seeds may merge after other epochs, and count where both have them; what was done by hand doesn't count."""
    asked = {
        "kind": "advice", "experiment": "language", "k": k, "pays": 1.2, "machine": {},
        "rows": [{"k": 4, "width": 64, "series": 1.5, "parallel": 3.0}],
    }  # fmt: skip
    found: list[Any] = [times("language"), asked, run("language", "partition", [(4, 10), (1, 1)], 0, 0.1)]
    found += [run("language", "whole", [(1, 20)], seed, alone) for seed, alone in enumerate((0.2, 0.3, 0.1))]
    for seed, merge_at in enumerate((8, 12)):
        trained = [{"k": 4, "epochs": merge_at}, {"k": 1, "epochs": merge_at // 4 - 1}]
        found += [run("language", "fit", [(4, 20)], seed, (error, 0.3)[seed], trained=trained)]
    found += [run("language", "fit", [(4, 20)], 0, 0.5, lr=2.0, trained=trained)]
    text = page(tmp_path, found)
    by_hand = "partition: 10 of K=4 + 1 of K=1: 10.00 (1 seed), 4.65 / 11.11"
    told = f"K={k}" if k else "don't divide"
    table = rows(text, "Advice and outcome")["a network: error, %"]
    assert table == ["20.00 ± 10.00", "4: 1.50 / 3.00 (64)", told, f"4: {outcome}", by_hand, right]
    assert "| fit -k 4 --epochs 20, merged after 8, 12 |" in text


def test_a_widened_network_trains_one_part(tmp_path: Path) -> None:
    found = [times("language"), run("language", "whole", [(1, 20)], 0, 0.1),
             run("language", "widen", [(2, 10), (1, 1)], 0, 0.1)]  # fmt: skip
    assert "- / 38.0" in page(tmp_path, found)


def test_a_shallow_network_is_told_by_its_blocks_and_one_that_stays_so_is_a_control(tmp_path: Path) -> None:
    found = [times("language"), run("language", "whole", [(1, 20)], 0, 0.1)]
    found += [run("language", "deepen", [(1, 10, 3), (1, 2)], 0, 0.1), run("language", "shallow", [(1, 9, 3)], 0, 0.09)]
    text = page(tmp_path, found)
    told = rows(text, "Time to the baseline's final error: a network")
    assert told["deepen: 10 of K=1, 3 blocks + 2 of K=1"][3:5] == ["60.0 / 60.0", "3.33 / 3.33"]
    assert "Fastest in series: deepen: 10 of K=1, 3 blocks + 2 of K=1, 3.33 times as fast" in text
    assert "A network that stays shallow is as good, too: shallow: 9 of K=1, 3 blocks, 5.56 times as fast." in text
    assert "with fewer epochs" not in text


def test_other_metrics_are_no_percentages(tmp_path: Path) -> None:
    found = [times("language"), run("language", "whole", [(1, 20)], 0, 2.5, metric="bits per character")]
    assert "| 2.5 |" in page(tmp_path, found)


def test_a_seed_that_is_found_twice_counts_once(tmp_path: Path) -> None:
    once = [run("language", "whole", [(1, 20)], seed, 0.1) for seed in (0, 1)]
    text = page(tmp_path, [times("language"), *once, *once])
    assert rows(text, "Time to the baseline's final error: a network")["whole, 20 epochs"][1] == "2"


def test_the_papers_own_latest_merges(tmp_path: Path) -> None:
    text = page(tmp_path, table2())
    assert "the paper's latest merges are at epochs 450 (1.59 / 2.54) and 250 (1.45) of 520" in text
    assert "with a limit of 1190 misclassified, names 400 (1.45 / 2.09) and 100." in text
