"""The live page's server: who may ask, what it answers, what it refuses; over real sockets."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import quote, urlencode

import numpy as np
import pyarrow.parquet
import pytest
from explored import ask, make_run, served, write_survey

import perseid
from perseid.errors import BadInputError
from perseid.explore import ExploredRun, ExploreServer, LiveRun
from perseid.explore.conditions import InBox, InRange
from perseid.explore.object_table import ObjectTable
from perseid.explore.plots import Plots, Shown
from perseid.model.export.residual_image import ResidualImages
from perseid.storage import Storage
from perseid.survey import write_cutouts

PAGES = ("", "objects", "object/0", "objects/part", "object/0/part", "teach", "teach/part")


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
            assert "is not a partition of this run" in answer.text


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
        ("f=" + quote('["lasso","z_pred","z_spec",[1,2,3]]'), "not a condition"),
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


# ---- Features: map, explanation, neighbors ---------------------------------------------------


def ready(address: str, path: str = "teach") -> str:
    """A page once the features are there: the page of ratings waits for them."""
    assert ask(address, "teach").status == 200
    return ask(address, path).text


def test_neighbors_are_those_of_perseid_similar(page, run):
    table = run.catalogue().to_arrow().to_pydict()
    text = ready(page, "object/7/part")
    shown = re.findall(r'data-object="(\d+)"', text)
    wanted = [one for one in run.similar(table["object_id"][7], n=13) if one.row != 7][:12]
    assert [str(table["object_id"][int(i)]) for i in shown] == [str(o.object_id) for o in wanted]


def test_the_band_of_a_defect_makes_most_of_the_score(tmp_path):
    """A bad column of one band of the default model's own survey."""
    from perseid.explore.explanation import explain
    from perseid.survey.simulation.simulate import simulate

    simulate(tmp_path / "survey", rows=40, seed=12, anomaly_rate=0.0, processes=1)
    (path,) = (tmp_path / "survey").glob("*.pt")
    cutouts = perseid.open_survey(tmp_path / "survey").read(0)
    images = cutouts.images.copy()
    images[3, 2, :, 10] += 8 * images[3, 2].std()
    write_cutouts(replace(cutouts, images=images), path)
    run = perseid.run(tmp_path / "survey", results=str(tmp_path / "run"), progress=False)
    explored = ExploredRun(run)
    residual = ResidualImages("default", run.manifest.model.digest).residual(images[3])
    assert np.abs(residual).mean(axis=(1, 2)).argmax() == 2
    assert np.abs(residual[2]).mean(axis=0).argmax() == 10, "the very column"
    found = explain(explored.features(), 3, "ugriz")
    assert found.bands[0].name == "r"
    assert found.bands[0].share > 0.5
    assert sum(one.share for one in found.bands) == pytest.approx(1)
    assert any(one.name.endswith((" r", "column")) for one in found.features)
    table = explored.needed_table()
    assert explored.features().metric.distance(explored.features().values) == pytest.approx(
        table.numbers("anomaly_score")
    )


def test_a_lasso_in_the_map_selects(page, run):
    text = ready(page, "objects")
    assert "map_1" in text
    whole = quote(json.dumps(["lasso", "map_1", "map_2", [-99, -99, 99, -99, 99, 99, -99, 99]]))
    assert "120 of 120 objects selected" in ask(page, f"objects/part?s={whole}").text
    half = quote(json.dumps(["lasso", "map_1", "map_2", [-99, -99, 0, -99, 0, 99, -99, 99]]))
    count = int(re.search(r"(\d+) of 120 objects selected", ask(
        page, f"objects/part?s={half}").text)[1])  # fmt: skip
    assert 0 < count < 120
    for color in ("z_pred", "anomaly_score", "label=5", "map_9", "label=x"):
        status = ask(page, f"objects?color={quote(color)}").status
        assert status == (400 if color in ("map_9", "label=x") else 200), color


# ---- Taking away -------------------------------------------------------------------------------


def test_a_selection_is_taken_away_in_every_format(page, run, tmp_path):
    from astropy.table import Table

    table = run.catalogue().to_arrow().to_pydict()
    limit = sorted(table["z_pred"])[100]
    wanted = [table["object_id"][i] for i in range(120) if table["z_pred"][i] >= limit]
    query = f"?s={condition('range', 'z_pred', limit, None)}"
    for suffix in ("fits", "vot", "csv", "parquet"):
        answer = ask(page, f"take/{suffix}{query}")
        path = tmp_path / f"selection.{suffix}"
        path.write_bytes(answer.body)
        found = Table.read(path, **({"format": "votable"} if suffix == "vot" else {}))
        assert found["object_id"].tolist() == wanted, suffix
        assert f'filename="selection-{run.id}.{suffix}"' in answer.headers["content-disposition"]
    page_text = ask(page, f"take/html{query}").text
    assert f"{len(wanted)} of 120 objects selected" in page_text
    assert all(str(one) in page_text for one in wanted)
    assert page_text.count("data:image/png;base64,") == len(wanted)
    assert not re.findall(r'(?:src|href)="(?!data:)', page_text), "it works offline"
    assert ask(page, "take/exe").status == 404
    nothing = ask(page, f"take/html?s={condition('range', 'z_pred', 1e9, None)}")
    assert (nothing.status, "No object is selected" in nothing.text) == (200, True)


# ---- Ratings -----------------------------------------------------------------------------------


def rate(address: str, index: int, rating: int) -> int:
    body = urlencode({"index": index, "rating": rating}).encode()
    return ask(address, "rate", method="POST", body=body, Accept="text/plain").status


def kept(folder) -> list[tuple[str, int, int]]:
    rows = pyarrow.parquet.read_table(folder / "ratings.parquet").to_pylist()
    return [(row["partition"], row["row"], row["rating"]) for row in rows]


@pytest.fixture
def copied(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.url.removeprefix("file://"), folder)
    (folder / "ratings.parquet").unlink(missing_ok=True)
    return folder


def test_ratings_are_kept_beside_the_run_and_can_be_taken_back(copied):
    with served(perseid.open_run(copied)) as server:
        assert ask(server.address, "undo", method="POST").status == 200
        assert not (copied / "ratings.parquet").exists()
        assert rate(server.address, 3, 5) == 200
        assert rate(server.address, 40, 1) == 200
        assert rate(server.address, 3, 2) == 200
        assert kept(copied) == [("1.pt", 3, 5), ("2.pt", 10, 1), ("1.pt", 3, 2)]
        assert "2 rated" in ask(server.address, "teach").text
        assert ask(server.address, "undo", method="POST").status == 200
        assert kept(copied) == [("1.pt", 3, 5), ("2.pt", 10, 1)]
        assert "rater" not in pyarrow.parquet.read_schema(copied / "ratings.parquet").names
        best = condition("range", "rating", 5, None)
        assert ids(ask(server.address, f"objects?f={best}&sort=learned_rank").text) == ["1003"]
    with served(perseid.open_run(copied), name="Ada") as server:
        assert "2 rated" in ask(server.address, "teach").text
        assert rate(server.address, 9, 4) == 200
        rows = pyarrow.parquet.read_table(copied / "ratings.parquet").to_pylist()
        assert [row["rater"] for row in rows] == [None, None, "Ada"]
        for _ in range(3):  # her own only
            ask(server.address, "undo", method="POST")
        assert len(kept(copied)) == 2


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("index=1&rating=6", 400), ("index=1&rating=0", 400), ("index=-1&rating=3", 400),
        ("index=120&rating=3", 400), ("rating=3", 400), ("", 400), ("x" * 10_000, 400),
        ("index=1&rating=33", 400),
    ],
)  # fmt: skip
def test_a_rating_that_is_none_is_refused(page, body, status):
    assert ask(page, "rate", method="POST", body=body.encode()).status == status


def test_another_site_cannot_rate(page):
    body = b"index=1&rating=5"
    for origin in ("http://evil.example", "null"):
        assert ask(page, "rate", method="POST", body=body, Origin=origin).status == 403
    assert ask(page, "rate").status == 405


def test_two_servers_on_one_run_lose_no_rating(copied):
    run = perseid.open_run(copied)
    with (
        served(run) as one,
        served(perseid.open_run(copied)) as other,
        ThreadPoolExecutor(8) as pool,
    ):
        places = [(one, other)[i % 2].address for i in range(24)]
        assert set(pool.map(lambda i: rate(places[i], i, 1 + i % 5), range(24))) == {200}
    assert sorted((row, rating) for _, row, rating in kept(copied)) == [
        (i, 1 + i % 5) for i in range(24)
    ]


def test_a_file_of_ratings_that_is_none_is_a_sentence(copied):
    (copied / "ratings.parquet").write_bytes(b"PAR1 broken")
    with served(perseid.open_run(copied)) as server:
        answer = ask(server.address, "teach")
        assert (answer.status, "move it away" in answer.text) == (400, True)
        assert (copied / "ratings.parquet").read_bytes() == b"PAR1 broken"


def test_killed_and_started_again_without_losing_a_rating(copied):
    command = [sys.executable, "-m", "perseid", "explore", str(copied), "--no-browser"]
    for turn, words in enumerate(([], ["--json"])):
        with subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True) as process:
            line = process.stdout.readline()
            address = json.loads(line)["address"] if words else line.split()[1]
            for index in range(5):
                assert rate(address, 10 * turn + index, 4) == 200
            process.kill()
    assert [row for _, row, _ in kept(copied)] == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert not list(copied.glob("ratings*#*"))


def test_replacing_a_run_leaves_the_work_of_people(tmp_path):
    run = make_run(tmp_path, rows=60)
    with served(run) as server:
        assert rate(server.address, 1, 5) == 200
    perseid.run(
        tmp_path / "survey", model=str(tmp_path / "tiny.onnx"), results=str(tmp_path / "run"),
        replace=True, progress=False,
    )  # fmt: skip
    assert kept(tmp_path / "run") == [("1.pt", 1, 5)]


# ---- Elsewhere -------------------------------------------------------------------------------


def test_in_a_notebook(run):
    page = run.explore(height=500)
    try:
        assert f'<iframe src="{page.address}"' in page._repr_html_()
        assert str(page) == f"explore    {page.address}"
        answer = ask(page.address, "objects")
        assert "frame-ancestors http://localhost:*" in answer.headers["content-security-policy"]
    finally:
        page.close()
    with pytest.raises(OSError, match="refused"):
        ask(page.address)


def test_a_run_in_s3(run, s3):
    bucket = s3.bucket()
    source, place = Storage(run.url), Storage(f"{bucket}/run")
    for info in source.list():
        if info.key != "ratings.parquet":
            place.put(info.key, source.get(info.key))
    with served(perseid.open_run(place.url)) as server:
        assert len(ids(ask(server.address, "objects").text)) == 50
        assert ask(server.address, "cutout/5.png").status == 200
        assert rate(server.address, 5, 4) == rate(server.address, 6, 2) == 200
        assert "2 rated" in ask(server.address, "teach").text
    assert place.size("ratings.parquet") > 0


def test_a_survey_without_ids_redshifts_and_labels(tmp_path):
    """Objects go by their places, and plots that need a missing column are left out."""
    from tiny import tiny_cutouts, tiny_model

    whole = tiny_cutouts(40)
    bare = replace(whole, object_id=None, redshift=None, label=None)
    (tmp_path / "survey").mkdir()
    write_cutouts(bare, tmp_path / "survey" / "1.pt")
    run = perseid.run(
        tmp_path / "survey", model=str(tiny_model(tmp_path / "tiny.onnx")),
        results=str(tmp_path / "run"), progress=False,
    )  # fmt: skip
    with served(run) as server:
        assert "1.pt row 39" in ready(server.address, "objects?sort=-row")
        text = ask(server.address, "objects").text
        assert ids(text)[:2] == ["1.pt row 0", "1.pt row 1"]
        assert 'data-plot="scores"' in text
        assert 'data-plot="redshift"' not in text
        assert ask(server.address, "object/3").status == 200
        assert rate(server.address, 3, 5) == 200
        assert "Precision" not in ask(server.address, "teach").text
        assert ask(server.address, "take/html").status == 200


def test_classes_are_compared_with_labels():
    """Names of the labels where the survey has them, else the place of the class."""
    table = pyarrow.table({
        "class": ["spiral", "smooth", "spiral", None], "label": [0, 1, 1, 0],
        "partition": ["1.pt"] * 4, "row": [0, 1, 2, 3],
    })  # fmt: skip
    plots = Plots(ObjectTable(table, {0: "spiral", 1: "smooth"}))
    assert plots.names() == ["classes"]
    drawn = plots.draw("classes", Shown(None, None))
    assert "3 objects. 66.7 % on the diagonal." in drawn.spoken
    assert "smooth, predicted spiral: 1 object<" in drawn.drawn()


@pytest.mark.parametrize("names", [("ra", "dec"), ("RA", "DEC"), ("raMean", "decMean")])
def test_the_sky_has_east_on_the_left_and_selects(names):
    """An object of high right ascension is drawn left of one of low; a box selects by degrees."""
    ra, dec = names
    table = ObjectTable(pyarrow.table({
        ra: [10.0, 20.0, 30.0, None], dec: [-5.0, 0.0, 5.0, 1.0],
        "partition": ["1.pt"] * 4, "row": [0, 1, 2, 3],
    }), {})  # fmt: skip
    plots = Plots(table)
    assert plots.names() == ["sky"]
    low = InBox(InRange(ra, None, 15.0), InRange(dec, None, None))
    drawn = plots.draw("sky", Shown(None, low.rows(table), (low,)))
    assert drawn.spoken == f"Sky, {dec} against {ra}: 1 of 4 objects selected"
    assert (drawn.x.column, drawn.y.column, drawn.lasso) == (ra, dec, False)
    assert drawn.x.low > drawn.x.high, "east is left"
    selected = re.findall(r'class="shade s\d" d="M([\d.]+)', drawn.drawn())
    others = re.findall(r'class="shade m\d" d="((?:M[^"]+))', drawn.drawn())
    places = [float(x) for text in others for x in re.findall(r"M([\d.]+)", text)]
    assert len(selected) == 1
    assert float(selected[0]) == max(places), "the lowest right ascension is the rightmost"
    assert len(set(places)) == 3
    assert "1 object outside the plot" in drawn.caption, "the one without a place"


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
