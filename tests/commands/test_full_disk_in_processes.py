"""A full disk and unreadable input under torchrun: one sentence, and a second start finishes."""

import failing
import pytest
from kills import STARTED, WORDS, errors_of, results, words, write_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("given")
    write_inputs(root)
    return root


@pytest.mark.parametrize("name", WORDS)
def test_a_full_disk_ends_all_and_a_second_start_finishes(folder, tmp_path, name):
    verb, world = name.split()[0], STARTED.get(name, 3)
    shared = verb in ("eval", "search")  # whose first process alone writes
    how = "a full disk" if shared else "a full disk while the others compute"
    codes, said = failing.run(how, words(name, folder, tmp_path), tmp_path, world, 1 - shared)
    assert codes == [2] * world, said
    assert len(errors_of(said)) == 1
    assert errors_of(said)[0].startswith(f"mmga {verb}: error: {tmp_path}/r")
    assert "could not be written" in said
    left = results(tmp_path)
    assert not [name for name in left if "tmp" in name or (shared and name.startswith("r"))]
    codes, said = failing.run("nothing", words(name, folder, tmp_path), tmp_path, 2)
    assert codes == [0, 0] and not errors_of(said)
    (tmp_path / "one").mkdir()
    codes, _ = failing.run("nothing", words(verb, folder, tmp_path / "one"), tmp_path / "one", 1)
    assert codes == [0]
    one = results(tmp_path / "one")
    both = {name: data for name, data in results(tmp_path).items() if not name.startswith("one/")}
    assert both == one
    kept = {name for name in left if "manifest" not in name}
    assert {name: left[name] for name in kept} == {name: one[name] for name in kept}
    assert shared or len(kept) >= 3  # what was finished before


@pytest.mark.parametrize(("file", "said"), [("first", "could not be read"), ("image", "decoded")])
def test_unreadable_input_of_an_extraction_ends_all(folder, tmp_path, file, said):
    made = words("extract", folder, tmp_path)
    spoilt = folder / "images" / sorted(path.name for path in (folder / "images").iterdir())[9]
    whole = spoilt.read_bytes()
    if file == "image":
        spoilt.write_bytes(whole[:40])
    else:
        failing.run("killed while the others compute", made, tmp_path)
        (tmp_path / "r.shards" / "000000004.npz").write_bytes(b"PK")
    codes, errors = failing.run("nothing", made, tmp_path)
    spoilt.write_bytes(whole)
    assert codes == [2, 2, 2]
    assert len(errors_of(errors)) == 1 and said in errors, errors
    assert not (tmp_path / "r.json").exists()
