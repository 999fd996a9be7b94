"""Files in a storage: put there and fetched, listed and removed; what goes wrong there is one sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onnxpart.errors import ModelError, OnnxpartError, UsageError
from onnxpart.storage.remote import Remote, cached, check_local, contents, exists, place_of, reading, unlink, writing
from tests.networks.storage import empty_memory

RUN = Remote("memory://bucket/run")


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    empty_memory(monkeypatch)


def put(place: Remote, content: str) -> None:
    with writing(place) as file:
        file.write_text(content)


def test_files_are_put_listed_fetched_and_removed() -> None:
    assert RUN.files() == []
    for name, content in (("b", "1"), ("a", "2"), ("parts/plan.json", "3"), ("a", "4")):
        put(RUN / name, content)
    put(Remote("memory://bucket/runner"), "not in it")
    assert RUN.files() == ["a", "b", "parts/plan.json"]
    with reading(RUN / "parts" / "plan.json") as file:
        assert (file.name, file.read_text()) == ("plan.json", "3")
    with reading(RUN / "a") as file:
        assert file.read_text() == "4"
    assert not file.exists()
    unlink([RUN / "a", RUN / "parts" / "plan.json"])
    assert RUN.files() == ["b"]
    assert [exists(RUN / name) for name in ("a", "b")] == [False, True]


def test_a_folder_has_folders_and_files_here_and_there(tmp_path: Path) -> None:
    for name in ("b", "a", "parts/plan.json"):
        put(RUN / name, name)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    for place in (RUN, Remote(f"{RUN}/"), tmp_path):
        assert contents(place) == ([place / "parts"], [place / "a", place / "b"])


def test_a_listed_file_is_fetched_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    put(RUN / "a", "old")
    (file,) = contents(RUN)[1]
    assert cached(file).read_text() == "old"
    put(RUN / "a", "new")
    assert cached(file).read_text() == "old"
    (file,) = contents(RUN)[1]
    assert cached(file).read_text() == "new"
    assert cached(tmp_path) == tmp_path
    (tmp_path / "full").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))
    with pytest.raises(ModelError, match=r"full/onnxpart/.. can't be written \(Not a directory\); let XDG_CACHE_HOME"):
        cached(file)


def test_a_file_that_is_not_finished_is_not_put() -> None:
    put(RUN / "a", "old")
    with pytest.raises(FileNotFoundError), writing(RUN / "a") as file:
        (file.parent / "none" / "a").write_text("new")
    with reading(RUN / "a") as file:
        assert file.read_text() == "old"


def test_a_place_is_a_path_or_a_url(tmp_path: Path) -> None:
    for text in ("run", "../run", "C:/run", "C://run", str(tmp_path)):
        assert place_of(text) == Path(text)
    assert place_of(f"file://{tmp_path}") == tmp_path
    found = place_of("s3://bucket/run/")
    assert found == Remote("s3://bucket/run/")
    assert isinstance(found, Remote)
    assert (str(found / "parts"), found.name) == ("s3://bucket/run/parts", "run")
    with writing(tmp_path / "a") as file:
        file.write_text("here")
    with reading(tmp_path / "a") as file:
        assert file == tmp_path / "a"
    unlink([tmp_path / "a", tmp_path / "none"])
    assert not exists(tmp_path / "a")


def test_a_url_is_refused_where_a_path_is_needed() -> None:
    check_local(Path("C:/run"))
    sentence = "s3://b/run.onnx isn't on this machine, and only fit writes elsewhere; write to a folder here, and copy"
    with pytest.raises(UsageError, match=sentence):
        check_local(Path("s3://b/run.onnx"))


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nowhere://b/run", r"nowhere://b/run can't be read \(Protocol not known: nowhere\); check the URL, and what"),
        ("memory://b/run", r"memory://b/run can't be read \(/b/run\); check the URL"),
        ("gs://b/run", r"gs://b/run needs the package gcsfs; install it with `pip install gcsfs`\."),
    ],
)
def test_what_goes_wrong_is_a_sentence(
    url: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ModelError, match=sentence):
        Remote(url).get(tmp_path / "copy")
    assert not list(tmp_path.iterdir())


def test_storages_need_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(
        OnnxpartError, match=r"memory://bucket/run needs the package fsspec; install it from a checkout"
    ):
        RUN.files()
