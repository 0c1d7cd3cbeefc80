"""Opening a canonical log: every damage to a file is found and named."""

import json
import re

import pyarrow as pa
import pytest

from sgrec_torchrec.logs.canonical import read_canonical
from sgrec_torchrec.logs.canonical_write import write_canonical
from sgrec_torchrec.logs.import_report import Origin
from sgrec_torchrec.logs.incoming import Incoming


@pytest.fixture
def log_dir(tmp_path):
    log = pa.table({"user_id": ["b", "a"], "item_id": [1, 2], "timestamp": [50, 90]})
    incoming = Incoming(name="log", source=log)
    write_canonical(tmp_path / "out", incoming, None, Origin(importer="t", note=""))
    return tmp_path / "out"


FILES = ["interactions/part-00000.parquet", "items.parquet"]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_detected(log_dir, name):
    path = log_dir / name
    whole = path.read_bytes()
    for position in range(0, len(whole), 37):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        path.write_bytes(bytes(flipped))
        with pytest.raises(ValueError, match=f"{re.escape(str(path))}: bytes changed"):
            read_canonical(log_dir)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_with_the_mend(log_dir, name):
    path = log_dir / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"truncated or changed\); copy the folder"):
        read_canonical(log_dir, verify=False)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(log_dir, name):
    (log_dir / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: is in manifest.json but not"):
        read_canonical(log_dir)


def test_pages_carry_checksums_that_catch_a_flip_without_the_manifest(
    log_dir, flip_in_page
):
    flip_in_page(log_dir / FILES[0])
    log = read_canonical(log_dir, verify=False)
    with pytest.raises(ValueError, match=r"part-00000.parquet: cannot be read .*CRC"):
        list(log.interactions())


def test_a_file_that_the_manifest_does_not_know_is_refused(log_dir):
    stranger = log_dir / "interactions" / "part-00007.parquet"
    stranger.write_bytes((log_dir / FILES[0]).read_bytes())
    with pytest.raises(
        ValueError, match=r"part-00007.parquet: is not in manifest.json"
    ):
        read_canonical(log_dir)


def test_a_folder_without_manifest_is_no_canonical_log(tmp_path):
    with pytest.raises(FileNotFoundError, match="no canonical log; make one with"):
        read_canonical(tmp_path)


def test_another_format_version_is_refused(log_dir):
    path = log_dir / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format_version": 99}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="format_version 99, this program reads 2"):
        read_canonical(log_dir)


@pytest.mark.parametrize("text", ['{"format_version": 1', '{"files": {}}', "[]", ""])
def test_a_damaged_manifest_is_refused(log_dir, text):
    (log_dir / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest.json is damaged \(.*import the"):
        read_canonical(log_dir)


def test_a_manifest_without_catalogue_is_refused(log_dir):
    (log_dir / "manifest.json").write_text('{"format_version": 1, "files": {}}')
    with pytest.raises(ValueError, match=r"lists no items.parquet\): import the log"):
        read_canonical(log_dir)
