"""The live page's server: who may ask, what it answers, what it refuses; over real sockets."""

from __future__ import annotations

import json
import re
import shutil
from urllib.parse import quote, urlencode

import pytest
from explored import ask, make_run, served, write_survey

import perseid
from perseid.errors import BadInputError
from perseid.explore import ExploredRun, ExploreServer, LiveRun

PAGES = ("", "objects", "object/0", "objects/part", "object/0/part")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("explored"))


@pytest.fixture(scope="module")
def page(run):
    with served(run) as server:
        yield server.address


def condition(*parts: object) -> str:
    return quote(json.dumps(parts))


def ids(text: str) -> list[str]:
    return re.findall(r'class="object"[^>]*>([^<]*)<', text)


# ---- Who may ask ------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_pages_need_the_token(page, path):
    assert ask(page, path).status == 200
    assert ask(page, f"/{path}", raw=True).status == 403
    assert ask(page, f"/{'x' * 32}/{path}", raw=True).status == 403
    short = page.rstrip("/").rpartition("/")[2][:-1]
    assert ask(page, f"/{short}/{path}", raw=True).status == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("", 403), ("evil.example:80", 403),
        ("localhost:1", 200), ("127.0.0.1:8888", 200), ("[::1]:7", 200), ("localhost", 200),
    ],
)  # fmt: skip
def test_another_name_is_refused_so_that_no_site_can_rebind_its_own(page, host, status):
    assert ask(page, "objects", Host=host).status == status


def test_every_answer_lets_the_page_load_nothing_from_elsewhere(page):
    for path in (*PAGES, "static/explore.js", "static/report.css", "cutout/0.png", "nothing"):
        answer = ask(page, path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy, path
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    page_text = ask(page, "object/0").text + ask(page, "objects").text
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page_text)
    assert " style=" not in page_text, "the policy would drop it"


@pytest.mark.parametrize(
    "path",
    [
        "static/../app.py", "static/%2e%2e%2fapp.py", "static/..%2f..%2f..%2fetc%2fpasswd",
        "cutout/../../etc/passwd", "log/../manifest.json", "plot/..%2f..%2fmanifest.json.svg",
        "//etc/passwd", "object/99999999999999999999", "cutout/-1.png", "cutout/120.png",
    ],
)  # fmt: skip
def test_no_path_outside_the_run_and_its_survey_can_be_read(page, path):
    answer = ask(page, path)
    assert answer.status in (400, 404)
    assert b"root:" not in answer.body
    assert b"Traceback" not in answer.body


def test_a_catalogue_that_names_another_file_gets_no_picture_of_it(run, tmp_path):
    """A cutout is only read of a partition that the manifest lists."""
    import pyarrow as arrow
    from pyarrow import parquet

    shutil.copytree(run.url.removeprefix("file://"), tmp_path / "run")
    path = tmp_path / "run" / "catalogue.parquet"
    table = parquet.read_table(path)
    write_survey(tmp_path / "other", 5)
    names = arrow.array([f"{tmp_path}/other/1.pt", "../other/1.pt"] * (len(table) // 2))
    place = table.column_names.index("partition")
    parquet.write_table(table.set_column(place, "partition", names), path)
    with served(perseid.open_run(tmp_path / "run")) as server:
        for index in (0, 1):
            answer = ask(server.address, f"cutout/{index}.png")
            assert (answer.status, answer.headers["content-type"][:10]) == (400, "text/plain")
            assert "is no partition of this run" in answer.text


def test_listening_for_others_needs_a_token_that_was_chosen(run):
    explored, live = ExploredRun(run), LiveRun(run)
    with pytest.raises(BadInputError, match="choose a --token"):
        ExploreServer(explored, live, host="0.0.0.0")
    with pytest.raises(BadInputError, match="8 to 128"):
        ExploreServer(explored, live, token="short")
    with pytest.raises(BadInputError, match=r"cannot be served on 192\.0\.2\.1"):
        ExploreServer(explored, live, host="192.0.2.1", token="chosen-token")
    with served(run, host="0.0.0.0", token="chosen-token") as server:
        assert server.address.endswith("/chosen-token/")
        local = f"http://127.0.0.1:{server.address.split(':')[2]}"
        assert ask(local, "objects").status == 200


# ---- What it answers --------------------------------------------------------------------


def test_the_table_is_paged_sorted_and_filtered_on_the_server(page, run):
    table = run.catalogue().to_arrow().to_pydict()
    by_score = sorted(
        range(120), key=lambda i: -table["anomaly_score"][i] if table["anomaly_score"][i] else 0
    )
    first = ask(page, "objects?sort=-anomaly_score").text
    assert ids(first) == [str(table["object_id"][i]) for i in by_score[:50]]
    third = ask(page, "objects?sort=-anomaly_score&page=3").text
    assert ids(third) == [str(table["object_id"][i]) for i in by_score[100:]]
    assert "Page 3 of 3" in third
    limit = table["z_pred"][by_score[7]]
    wanted = [i for i in range(120) if table["z_pred"][i] >= limit]
    found = ask(page, f"objects?f={condition('range', 'z_pred', limit, None)}").text
    assert ids(found) == [str(table["object_id"][i]) for i in wanted][:50]
    text = ask(page, "objects?" + urlencode({"column": "partition", "part": "2.PT"})).text
    assert ids(text) == [str(1000 + i) for i in range(30, 60)]
    label = ask(page, f"objects?f={condition('in', 'label', [5])}").text
    assert len(ids(label)) == sum(value == 5 for value in table["label"])


def test_a_selection_shows_in_every_plot_and_in_the_table(page, run):
    table = run.catalogue().to_arrow().to_pydict()
    low, high = sorted(table["z_pred"])[20], sorted(table["z_pred"])[60]
    box = condition("box", "z_spec", None, None, "z_pred", low, high)
    answer = ask(page, f"objects/part?s={box}")
    count = sum(low <= value <= high for value in table["z_pred"])
    assert f"{count} of 120 objects selected" in answer.text
    plots = re.findall(r"<figure class=\"plot.*?</figure>", answer.text, re.DOTALL)
    assert len(plots) >= 2
    assert all(f"{count} of 120 objects selected" in plot for plot in plots)
    assert len(ids(answer.text)) == count
    assert "box" in answer.headers["x-address"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("sort=nothing", "no column &#39;nothing&#39;"),
        ("f=[", "cannot be read"),
        ("f=" + quote('["range","z_pred","x",1]'), "cannot be read"),
        ("f=" + quote('["range","z_pred",1e999,1]'), "cannot be read"),
        ("f=" + quote('["lasso","z_pred","z_spec",[1,2,3]]'), "no condition"),
        ("f=" + quote('["lasso","z_pred","z_spec",[1,2,3,4,5,6,7]]'), "cannot be read"),
        ("f=" + "[" * 5000, "cannot be read"),
        ("f=" + quote('["in","label",[1e400]]'), "cannot be read"),
        ("f=" + quote(f'["in","label",[{10**400}]]'), "cannot be read"),
        ("f=" + quote('["range","<b>x</b>",1,2]'), "no column &#39;&lt;b&gt;x"),
        ("page=0", "is not a number from 1"),
        ("page=" + "9" * 5000, "is not a number from 1"),
        ("column=z_pred&low=abc", "is a number"),
        ("column=label&part=comet", "is never"),
        ("&".join(["f=" + quote('["range","z_pred",0,1]')] * 33), "at most 32"),
    ],
)
def test_an_address_that_cannot_be_read_is_a_sentence(page, query, words):
    answer = ask(page, f"objects?{query}")
    assert answer.status == 400
    assert words in answer.text
    assert "This cannot be shown" in answer.text


def test_pictures_of_any_band_and_of_any_three(page):
    pictures = {
        words: ask(page, f"cutout/3.png?{words}")
        for words in ("", "bands=0", "bands=4", "bands=4,2,0", "bands=0&stretch=linear",
                      "bands=0&brightness=4")
    }  # fmt: skip
    assert {one.status for one in pictures.values()} == {200}
    assert all(one.body.startswith(b"\x89PNG") for one in pictures.values())
    assert len({one.body for one in pictures.values()}) == len(pictures)
    for wrong in ("bands=5", "bands=a", "bands=0,1", "brightness=0", "brightness=nan", "bands=-1"):
        assert ask(page, f"cutout/3.png?{wrong}").status == 400, wrong


def test_plots_can_be_taken_away_as_files(page):
    answer = ask(page, "plot/scores.svg")
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert answer.text.startswith("<?xml")
    assert "class=" not in answer.text
    assert ask(page, "plot/nothing.svg").status == 400


def test_the_log_of_a_rank(page):
    assert "REPORT RequestId" in ask(page, "log/1").text
    assert ask(page, "log/2").status == 400


def test_a_survey_that_has_moved_leaves_the_tables_and_says_why(run, tmp_path):
    shutil.copytree(run.url.removeprefix("file://"), tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["data_url"] = f"file://{tmp_path}/gone"
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    with served(perseid.open_run(tmp_path / "run")) as server:
        assert len(ids(ask(server.address, "objects").text)) == 50
        picture = ask(server.address, "cutout/0.png")
        assert (picture.status, f"{tmp_path}/gone/1.pt" in picture.text) == (404, True)
        assert "No picture: " in ask(server.address, "object/0").text


# ---- Hostile names ----------------------------------------------------------------------


def test_ids_and_names_are_never_markup(tmp_path):
    run = make_run(tmp_path, hostile=True, rows=60)
    with served(run) as server:
        for path in ("", "objects", "objects/part", "object/1", "object/1/part", "objects?f=[<b>"):
            text = ask(server.address, path).text
            assert "<script>window" not in text
            assert "<img src=x" not in text
            assert "<b onclick" not in text
            assert "\x1b" not in text
            assert "\u202e" not in text
        assert "&lt;script&gt;window.planted" in ask(server.address, "objects").text
        assert ask(server.address, "cutout/1.png").status == 200
