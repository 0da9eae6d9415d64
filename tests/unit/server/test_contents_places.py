from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bundles.errors import ServerFault, UsageError
from bundles.server.places import S3Place, open_store
from bundles.server.s3_store import _key, _location

UUID = "0x" + "ab" * 16


@pytest.mark.parametrize(
    ("text", "bucket", "prefix"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://bucket/a", "bucket", "a/"),
        ("s3://my.bucket-1/a/b_c.d/", "my.bucket-1", "a/b_c.d/"),
    ],
)
def test_a_place_is_a_bucket_and_a_prefix_that_ends(text: str, bucket: str, prefix: str) -> None:
    assert S3Place.parse(text) == S3Place(bucket, prefix)


@pytest.mark.parametrize(
    "text", ["s3://", "s3:///a", "s3://B/a", "s3://bucket//a", "s3://bucket/a b", "s3://bucket/ä"]
)
def test_what_is_no_place_is_said_with_what_to_write(text: str) -> None:
    with pytest.raises(UsageError, match="s3://BUCKET/PREFIX"):
        S3Place.parse(text)


@pytest.mark.parametrize("text", ["", "gs://bucket/x", "http://host/x", "S3://bucket/x"])
def test_what_is_no_path_is_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="or the path of a directory"):
        open_store(text, None, tmp_path)


def test_a_cache_is_for_s3_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--contents-cache"):
        open_store(None, 1, tmp_path)
    with pytest.raises(UsageError, match="--contents-cache"):
        open_store("/srv/contents", 1, tmp_path)


def test_without_boto3_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ServerFault, match=r"pip install 'worker-manager\[aws\]'"):
        open_store("s3://bucket/prefix", None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_boto3_is_not_imported_for_contents_in_a_directory() -> None:
    program = (
        "import sys; from pathlib import Path; import bundles.server.run as run;"
        "run.open_store(None, None, Path('nowhere')); run.open_store('/x', None, Path('nowhere'));"
        "print('boto3' in sys.modules or 'botocore' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize("rest", ["0011", f"0011-{'0' * 64}", "7"])
def test_a_location_is_found_by_its_key_again(rest: str) -> None:
    location = f"ab/{UUID}-{rest}"
    assert _location(_key(location)) == location


@pytest.mark.parametrize(
    "key",
    [
        *("database", "notes.txt", "ab/readme", f"ab/{UUID}", f"ab/{UUID}-0011"),
        *(f"x/ab/{UUID}-0011.tar.gz", f"ab/{UUID}-0011-{'0' * 64}.tar.gz", f"{UUID}-0011.tar.gz"),
    ],
)
def test_other_keys_are_nobodys(key: str) -> None:
    assert _location(key) is None
