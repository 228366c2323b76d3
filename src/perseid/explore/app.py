"""The routes of the live page and their handlers: an ASGI application without the token check."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from perseid.errors import BadInputError, NotFoundError, PerseidError
from perseid.explore.conditions import Query, asked
from perseid.explore.cutout_images import PictureOptions, draw, draw_residual
from perseid.explore.explored_run import ExploredRun
from perseid.explore.live import LiveRun
from perseid.explore.object_page import object_view
from perseid.explore.run_page import log_lines, run_view
from perseid.explore.takeaway import selected_file, selected_report
from perseid.explore.teach_page import TeachView, teach_view
from perseid.explore.teaching import Teaching
from perseid.explore.views import objects_view
from perseid.measure.present.pages import environment
from perseid.measure.present.palette import style
from perseid.plaintext import printable

PICTURE_SECONDS = 0.5
"""Minimum interval between two updates of a run that is going on, in seconds."""
HEARTBEAT_SECONDS = 15.0
"""Interval of heartbeats, in seconds, so that no proxy closes a quiet stream of events."""
LOOK_SECONDS = 0.1
"""Interval at which a stream of events checks for a new version, in seconds."""
PREPARE_SECONDS = 60.0
"""Seconds that a page waits for the features before it is shown without them."""
MOST_BODY = 4096
"""Maximum size of a posted rating, in bytes."""
STATIC = {"explore.js": "text/javascript", "explore.css": "text/css"}


@dataclass(frozen=True)
class PageHead:
    """What the layout of every page needs."""

    root: str
    """Relative address of the first page."""
    place: str
    """Name of the page in the navigation: ``run``, ``objects`` or ``teach``."""
    title: str
    run_id: str
    where: str
    """Folder or URL of the run."""
    going: bool


class ExploreApp:
    """Answers the requests for one run.

    Parameters
    ----------
    explored
        Catalogue and pictures of the run.
    live
        Progress of the run.
    rater
        Name stored with each rating; empty for none.
    """

    def __init__(self, explored: ExploredRun, live: LiveRun, rater: str = "") -> None:
        self._explored, self._live, self._rater = explored, live, rater
        self._teaching: Teaching | None = None
        self._templates = environment("perseid.explore")

    def routes(self) -> list[Route]:
        """All routes of the page."""
        return [
            Route("/", self.run_page),
            Route("/events", self.events),
            Route("/log/{rank:int}", self.log),
            Route("/objects", self.objects),
            Route("/objects/part", self.objects_part),
            Route("/object/{index:int}", self.one),
            Route("/object/{index:int}/part", self.one_part),
            Route("/cutout/{index:int}.png", self.cutout),
            Route("/residual/{index:int}.png", self.residual),
            Route("/plot/{name}.svg", self.plot),
            Route("/take/{suffix}", self.take),
            Route("/teach", self.teach),
            Route("/teach/part", self.teach_part),
            Route("/rate", self.rate, methods=["POST"]),
            Route("/undo", self.undo, methods=["POST"]),
            # One segment only, so that a request cannot name a path.
            Route("/static/{name}", self.static),
        ]

    def run_page(self, request: Request) -> Response:
        """The page of the run: its progress, or its outcome."""
        view = run_view(self._explored, self._live)
        return self._page(request, "run.html", "run", "Run", view=view)

    def objects(self, request: Request) -> Response:
        """The page of the catalogue: plots and table."""
        self._prepare()
        view = objects_view(self._explored, self._query(request))
        return self._page(request, "objects.html", "objects", "Objects", view=view)

    def objects_part(self, request: Request) -> Response:
        """The part of the page of objects that depends on the query."""
        self._prepare()
        view = objects_view(self._explored, self._query(request))
        return self._part(request, "objects_part.html", view=view, address=view.address)

    def one(self, request: Request) -> Response:
        """The page of one object."""
        self._prepare()
        view = object_view(self._explored, request.path_params["index"])
        return self._page(request, "object.html", "objects", view.name, view=view)

    def one_part(self, request: Request) -> Response:
        """The part of the page of one object that is shown beside the table."""
        view = object_view(self._explored, request.path_params["index"])
        return self._part(request, "object_part.html", view=view)

    def _prepare(self) -> None:
        """Begin to read the features; once they are read, add the columns of the ratings."""
        self._explored.prepare()
        # Not earlier: learning needs the features, and the page must not wait for them.
        if self._explored.prepared.is_set():
            self._taught().publish()

    def _taught(self) -> Teaching:
        if self._teaching is None:
            self._teaching = Teaching(self._explored, self._rater)
        return self._teaching

    def teach(self, request: Request) -> Response:
        """The page of objects to rate and of the learned ranking."""
        return self._page(request, "teach.html", "teach", "Teach", view=self._teach_view(request))

    def teach_part(self, request: Request) -> Response:
        """The part of that page that changes with each rating."""
        return self._part(request, "teach_part.html", view=self._teach_view(request))

    def _teach_view(self, request: Request) -> TeachView:
        self._explored.needed_table()
        self._explored.prepare()
        self._explored.prepared.wait(PREPARE_SECONDS)
        given = request.query_params.getlist("label")
        # Checked before int(): Python refuses very long numbers with an error of its own.
        if not all(re.fullmatch("-?[0-9]{1,15}", text) for text in given):
            raise BadInputError(f"labels must be whole numbers, not {given}")
        return teach_view(self._explored, self._taught(), [int(text) for text in given])

    async def rate(self, request: Request) -> Response:
        """Store one rating."""
        # Parsed here: Starlette's forms need a further package.
        given = dict(parse_qsl((await _body(request)).decode("utf-8", "replace")))
        index, rating = given.get("index", ""), given.get("rating", "")
        if not (re.fullmatch("[0-9]{1,12}", index) and re.fullmatch("[0-9]", rating)):
            raise BadInputError("a rating names an object and a number from 1 to 5")
        # In a thread: writing to a store would block all other visitors.
        await run_in_threadpool(self._rated, int(index), int(rating))
        return self._after(request)

    def _rated(self, index: int, rating: int) -> None:
        self._taught().rate(index, rating)

    async def undo(self, request: Request) -> Response:
        """Undo the last rating."""
        await _body(request)
        await run_in_threadpool(lambda: self._taught().undo())
        return self._after(request)

    def _after(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            # A form without the script: show the page again, by GET.
            return RedirectResponse("teach", 303)
        return PlainTextResponse(f"{len(self._taught().rated())}")

    def cutout(self, request: Request) -> Response:
        """A picture of one object, or a sentence that says why there is none."""
        words = request.query_params
        options = PictureOptions.parse(
            words.get("bands", ""), words.get("brightness", ""), words.get("stretch", "")
        )
        partition, row = self._explored.place(request.path_params["index"])
        image = draw(self._explored.images.image(partition, row), options)
        # Cutouts of a run never change, and a table shows the same ones again and again.
        return Response(image, media_type="image/png", headers={"cache-control": "max-age=3600"})

    def residual(self, request: Request) -> Response:
        """The residual of the model's reconstruction of one object, in one band."""
        residuals, band = self._explored.residuals, request.query_params.get("band", "0")
        if residuals is None:
            raise NotFoundError("the run's model has no reconstruction that can be shown")
        partition, row = self._explored.place(request.path_params["index"])
        found = residuals.residual(self._explored.images.image(partition, row))
        if not re.fullmatch("[0-9]{1,4}", band) or int(band) >= len(found):
            raise BadInputError(f"there is no band {band[:20]!r}: the cutouts have {len(found)}")
        image = draw_residual(-found[int(band)])  # the sign that makes unexpected light positive
        return Response(image, media_type="image/png", headers={"cache-control": "max-age=3600"})

    def plot(self, request: Request) -> Response:
        """One plot as an SVG file."""
        query = self._query(request)
        name = request.path_params["name"]
        plot = self._explored.plots().draw(name, self._explored.shown(query), query.color)
        headers = {"content-disposition": f'attachment; filename="{name}.svg"'}
        return Response(plot.svg.file(plot.spoken), media_type="image/svg+xml", headers=headers)

    def take(self, request: Request) -> Response:
        """The selected rows as a file, or a report about them."""
        suffix, query = request.path_params["suffix"], self._query(request)
        if suffix == "html":
            taken = selected_report(self._explored, query)
        else:
            taken = selected_file(self._explored, query, suffix)
        headers = {"content-disposition": f'attachment; filename="{taken.name}"'}
        return Response(taken.content, media_type=taken.media_type, headers=headers)

    def log(self, request: Request) -> Response:
        """The log of a rank."""
        text = log_lines(self._explored.run, request.path_params["rank"])
        return PlainTextResponse(printable(text))

    async def events(self, request: Request) -> Response:
        """The progress of the run as server-sent events; each is the changed part of the page."""
        return StreamingResponse(self._pictures(request), media_type="text/event-stream")

    async def _pictures(self, request: Request) -> AsyncIterator[str]:
        # -1, so that the present state is sent at once.
        version, silent = -1, 0.0
        while not (self._live.closed or await request.is_disconnected()):
            if self._live.version == version:  # polled, so that no thread waits per visitor
                await asyncio.sleep(LOOK_SECONDS)
                silent += LOOK_SECONDS
                if silent >= HEARTBEAT_SECONDS:
                    silent = 0.0
                    # A comment line, which browsers ignore.
                    yield ": still here\n\n"
                continue
            version, silent = self._live.version, 0.0
            going = self._live.going
            text = await run_in_threadpool(self._live_part)
            yield (
                f"event: {'run' if going else 'end'}\n"
                + "".join(f"data: {line}\n" for line in text.splitlines())
                + "\n"
            )
            # The script closes the connection at the last event; else the browser would reconnect.
            if not going:
                return
            await asyncio.sleep(PICTURE_SECONDS)

    def _live_part(self) -> str:
        view = run_view(self._explored, self._live)
        template = self._templates.get_template("run_part.html")
        return template.render(view=view, frame=self._frame("", "run", "Run"))

    def static(self, request: Request) -> Response:
        """The script and the style sheets of this package; no other file can be requested."""
        name = request.path_params["name"]
        # The report's sheet is made by code, so that pages and reports look alike.
        if name == "report.css":
            return Response(style(), media_type="text/css")
        # Only known names, so that no path can lead out of the folder.
        if name not in STATIC:
            raise NotFoundError(f"there is no {name!r} here")
        # Through importlib.resources, since the package may be inside a zip file.
        text = files("perseid.explore").joinpath("static", name).read_text(encoding="utf-8")
        return Response(text, media_type=STATIC[name])

    def _query(self, request: Request) -> Query:
        items = request.query_params.multi_items()
        query = Query.parse(items)
        one = asked(items, self._explored.needed_table())
        # The form works without the script, which then has no other way to add a condition.
        return query if one is None else query.filtered(one)

    def _frame(self, path: str, place: str, title: str) -> PageHead:
        run = self._explored.run
        return PageHead(
            root="../" * path.strip("/").count("/") or "./",
            place=place,
            title=title,
            run_id=run.id,
            where=self._explored.store.where(),
            going=self._live.going,
        )

    def _page(
        self, request: Request, template: str, place: str, title: str, **parts: object
    ) -> Response:
        frame = self._frame(request.scope["path"], place, title)
        return HTMLResponse(self._templates.get_template(template).render(frame=frame, **parts))

    def _part(
        self, request: Request, template: str, address: str = "", **parts: object
    ) -> Response:
        frame = self._frame("", "", "")
        text = self._templates.get_template(template).render(frame=frame, **parts)
        # Headers are ASCII; the script shows this address in the browser.
        headers = {"x-address": address.encode("ascii", "ignore").decode()}
        return HTMLResponse(text, headers=headers if address else None)

    async def refused(self, request: Request, error: Exception) -> Response:
        """The answer to an error: a page with its message, or plain text for parts and pictures."""
        status = 502  # the store or another service failed, not this server
        if isinstance(error, NotFoundError):
            status = 404
        elif isinstance(error, BadInputError):
            status = 400
        path = request.scope["path"]
        # Parts, pictures and files are requested by the script, which shows a plain sentence.
        if (path.count("/") > 1 and not path.startswith("/object/")) or path.endswith("/part"):
            return PlainTextResponse(printable(str(error)) + "\n", status)
        frame = await run_in_threadpool(self._frame, path, "", "Not available")
        template = self._templates.get_template("refused.html")
        return HTMLResponse(template.render(frame=frame, words=str(error)), status)


async def _body(request: Request) -> bytes:
    """The body of a request; raises `BadInputError` if it is too long for a rating."""
    found = b""
    # Counted while it arrives: the header with the length may be missing or wrong.
    async for part in request.stream():
        found += part
        if len(found) > MOST_BODY:
            raise BadInputError("the request is too long for a rating")
    return found


def make_app(explored: ExploredRun, live: LiveRun, *, rater: str = "") -> Starlette:
    """Create the application for one run."""
    app = ExploreApp(explored, live, rater)
    handlers: dict[type[Exception] | int, Callable[..., object]] = {PerseidError: app.refused}
    return Starlette(routes=app.routes(), exception_handlers=handlers)  # type: ignore[arg-type]
