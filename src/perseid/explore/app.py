"""The page's addresses, and what answers each: an ASGI application without any secret."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.resources import files

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from perseid.errors import BadInputError, NotFoundError, PerseidError
from perseid.explore.conditions import Query, asked
from perseid.explore.cutout_images import PictureOptions, draw
from perseid.explore.explored_run import ExploredRun
from perseid.explore.live import LiveRun
from perseid.explore.object_page import object_view
from perseid.explore.run_page import log_lines, run_view
from perseid.explore.views import objects_view
from perseid.measure.present.pages import environment
from perseid.measure.present.palette import style
from perseid.plaintext import printable

PICTURE_SECONDS = 0.5
"""Between two pictures of a run that is going on."""
HEARTBEAT_SECONDS = 15.0
STATIC = {"explore.js": "text/javascript", "explore.css": "text/css"}


@dataclass(frozen=True)
class PageHead:
    """What every page has around it."""

    root: str
    """Where the first page lies, relative to this one."""
    place: str
    """Which page it is: ``run``, ``objects``, …"""
    title: str
    run_id: str
    where: str
    """The run's folder or URL."""
    going: bool
    ready: bool
    """Whether there is a catalogue."""


class ExploreApp:
    """Answers the requests for one run.

    Parameters
    ----------
    explored
        Its catalogue and pictures.
    live
        Its progress.
    rater
        Who rates; empty: nobody's name is kept.
    """

    def __init__(self, explored: ExploredRun, live: LiveRun, rater: str = "") -> None:
        self._explored, self._live, self._rater = explored, live, rater
        self._templates = environment("perseid.explore")

    def routes(self) -> list[Route]:
        """All addresses."""
        return [
            Route("/", self.run_page),
            Route("/events", self.events),
            Route("/log/{rank:int}", self.log),
            Route("/objects", self.objects),
            Route("/objects/part", self.objects_part),
            Route("/object/{index:int}", self.one),
            Route("/object/{index:int}/part", self.one_part),
            Route("/cutout/{index:int}.png", self.cutout),
            Route("/plot/{name}.svg", self.plot),
            Route("/static/{name}", self.static),
        ]

    def run_page(self, request: Request) -> Response:
        """How the run stands, or how it went."""
        view = run_view(self._explored, self._live)
        return self._page(request, "run.html", "run", "Run", view=view)

    def objects(self, request: Request) -> Response:
        """The catalogue: plots and table."""
        view = objects_view(self._explored, self._query(request))
        return self._page(request, "objects.html", "objects", "Objects", view=view)

    def objects_part(self, request: Request) -> Response:
        """What changes on the page of objects when the address does."""
        view = objects_view(self._explored, self._query(request))
        return self._part(request, "objects_part.html", view=view, address=view.address)

    def one(self, request: Request) -> Response:
        """The page of one object."""
        view = object_view(self._explored, request.path_params["index"])
        return self._page(request, "object.html", "objects", view.name, view=view)

    def one_part(self, request: Request) -> Response:
        """The same, to be shown beside the table."""
        view = object_view(self._explored, request.path_params["index"])
        return self._part(request, "object_part.html", view=view)

    def cutout(self, request: Request) -> Response:
        """A picture of one object; where there is none, a sentence that says why."""
        words = request.query_params
        options = PictureOptions.parse(
            words.get("bands", ""), words.get("brightness", ""), words.get("stretch", "")
        )
        partition, row = self._explored.place(request.path_params["index"])
        image = draw(self._explored.images.image(partition, row), options)
        return Response(image, media_type="image/png", headers={"cache-control": "max-age=3600"})

    def plot(self, request: Request) -> Response:
        """One plot as a file of its own."""
        query = self._query(request)
        name = request.path_params["name"]
        plot = self._explored.plots().draw(name, self._explored.shown(query), query.color)
        headers = {"content-disposition": f'attachment; filename="{name}.svg"'}
        return Response(plot.svg.file(plot.spoken), media_type="image/svg+xml", headers=headers)

    def log(self, request: Request) -> Response:
        """What a rank logged."""
        text = log_lines(self._explored.run, request.path_params["rank"])
        return PlainTextResponse(printable(text))

    async def events(self, request: Request) -> Response:
        """The run as it goes on: server-sent events, each the part of the page that has changed."""
        return StreamingResponse(self._pictures(request), media_type="text/event-stream")

    async def _pictures(self, request: Request) -> AsyncIterator[str]:
        version = -1
        while not await request.is_disconnected():
            seen = await run_in_threadpool(self._live.wait_for_change, version, HEARTBEAT_SECONDS)
            if seen == version:
                if self._live.closed:
                    return
                yield ": still here\n\n"
                continue
            version = seen
            going = self._live.going
            text = await run_in_threadpool(self._live_part)
            yield (
                f"event: {'run' if going else 'end'}\n"
                + "".join(f"data: {line}\n" for line in text.splitlines())
                + "\n"
            )
            if not going:
                return
            await asyncio.sleep(PICTURE_SECONDS)

    def _live_part(self) -> str:
        view = run_view(self._explored, self._live)
        template = self._templates.get_template("run_part.html")
        return template.render(view=view, frame=self._frame("", "run", "Run"))

    def static(self, request: Request) -> Response:
        """The script and the style sheets of this package, and no other file."""
        name = request.path_params["name"]
        if name == "report.css":
            return Response(style(), media_type="text/css")
        if name not in STATIC:
            raise NotFoundError(f"there is no {name!r} here")
        text = files("perseid.explore").joinpath("static", name).read_text(encoding="utf-8")
        return Response(text, media_type=STATIC[name])

    def _query(self, request: Request) -> Query:
        items = request.query_params.multi_items()
        query = Query.parse(items)
        one = asked(items, self._explored.needed_table())
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
            ready=self._explored.table() is not None,
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
        headers = {"x-address": address.encode("ascii", "ignore").decode()}
        return HTMLResponse(text, headers=headers if address else None)

    async def refused(self, request: Request, error: Exception) -> Response:
        """A sentence in place of a page; JSON and pictures get it as plain text."""
        status = 502
        if isinstance(error, NotFoundError):
            status = 404
        elif isinstance(error, BadInputError):
            status = 400
        path = request.scope["path"]
        if (path.count("/") > 1 and not path.startswith("/object/")) or path.endswith("/part"):
            return PlainTextResponse(printable(str(error)) + "\n", status)
        frame = await run_in_threadpool(self._frame, path, "", "Not to be had")
        template = self._templates.get_template("refused.html")
        return HTMLResponse(template.render(frame=frame, words=str(error)), status)


def make_app(explored: ExploredRun, live: LiveRun, *, rater: str = "") -> Starlette:
    """The application for one run."""
    app = ExploreApp(explored, live, rater)
    handlers: dict[type[Exception] | int, Callable[..., object]] = {PerseidError: app.refused}
    return Starlette(routes=app.routes(), exception_handlers=handlers)  # type: ignore[arg-type]
