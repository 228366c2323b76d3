// The script of the live page: it requests parts of the page from the server and inserts them.
// The server has escaped all text in them; the script itself never turns text into markup.
"use strict";

const root = document.body.dataset.root;
const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
const SVG = "http://www.w3.org/2000/svg";
let asked = 0;

function say(words) {
  $("#said").textContent = words;
}

async function part(path) {
  const answer = await fetch(root + path, { headers: { accept: "text/html" } });
  const text = await answer.text();
  if (!answer.ok) throw new Error(text.trim());
  return { text, address: answer.headers.get("x-address") };
}

// ---- The page of objects: the address holds its whole state -------------------------------------

async function go(search, { push = true, focus = null } = {}) {
  const results = $("#results"), mine = ++asked;
  if (!results) return;
  results.classList.add("busy");
  try {
    const { text, address } = await part("objects/part" + search);
    if (mine !== asked) return; // the answer to a later request is already shown
    // New markup closes all details; those that were open are opened again.
    const open = $$(".plot details[open]", results).map((one) => one.closest(".plot").dataset.plot);
    results.innerHTML = text;
    for (const name of open) $(`.plot[data-plot="${name}"] details`, results)?.setAttribute("open", "");
    if (push) history.pushState(null, "", root + "objects" + (address || search) + location.hash);
    if (focus) $(focus)?.focus();
    say($(".count", results).textContent);
    markRow(location.hash.slice(2));
    watchPictures(results);
    awaitMap();
  } catch (error) {
    say(error.message);
    showProblem(error.message);
  } finally {
    if (mine === asked) results.classList.remove("busy");
  }
}

function showProblem(words) {
  const state = $(".state");
  if (!state) return;
  $(".problem", state)?.remove();
  const note = document.createElement("p");
  note.className = "problem";
  note.textContent = words;
  state.append(note);
}

function conditions(name) {
  return new URLSearchParams($(".state").dataset.address.slice(1)).getAll(name);
}

function columnsOf(text) {
  const [kind, ...rest] = JSON.parse(text);
  if (kind === "box") return [rest[0], rest[3]].join("\n");
  if (kind === "lasso") return [rest[0], rest[1]].join("\n");
  return rest[0];
}

function select(columns, condition) {
  const words = new URLSearchParams($(".state").dataset.address.slice(1));
  const kept = words.getAll("s").filter((text) => columnsOf(text) !== columns);
  words.delete("s");
  words.delete("page");
  for (const text of kept) words.append("s", text);
  if (condition) words.append("s", JSON.stringify(condition));
  go("?" + words);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-go]");
  // With Ctrl or Cmd, the browser opens the link in a new tab.
  if (!link || event.metaKey || event.ctrlKey) return;
  event.preventDefault();
  const sorted = link.closest("thead");
  go(new URL(link.href).search, { focus: sorted ? "th[aria-sort] a" : null });
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.matches("form.filter")) {
    event.preventDefault();
    const words = new URLSearchParams($(".state").dataset.address.slice(1));
    words.delete("page");
    for (const [name, value] of new FormData(form)) if (value) words.append(name, value);
    go("?" + words);
    for (const input of $$("input", form)) input.value = "";
  } else if (form.matches("form[data-brush]")) {
    event.preventDefault();
    const plot = form.closest(".plot").dataset;
    const number = (name) => (form.elements[name]?.value.trim() ? Number(form.elements[name].value) : null);
    const x = [number("x-low"), number("x-high")], y = [number("y-low"), number("y-high")];
    if ([...x, ...y].some(Number.isNaN)) return say("Enter numbers.");
    if (plot.y) select([plot.x, plot.y].join("\n"), ["box", plot.x, ...x, plot.y, ...y]);
    else select(plot.x, ["range", plot.x, ...x]);
  }
});

window.addEventListener("popstate", () => go(location.search, { push: false }));

function fitFilter() {
  const form = $("form.filter");
  if (!form) return;
  const kind = form.elements.column.selectedOptions[0]?.dataset.kind;
  for (const label of $$("label[data-for]", form)) label.hidden = !label.dataset.for.split(" ").includes(kind);
}

// ---- Brushes -------------------------------------------------------------------------------------

const scaleOf = (plot, axis) => {
  const d = plot.dataset;
  if (!d[axis]) return null;
  const [low, high, start, end] = ["Low", "High", "Start", "End"].map((word) => Number(d[axis + word]));
  const log = d[axis + "Log"] === "1";
  return {
    start, end,
    value(pixel) {
      const share = (pixel - start) / (end - start);
      return log ? low * (high / low) ** share : low + share * (high - low);
    },
  };
};

function pointOf(svg, event) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  return [point.x, point.y];
}

const clamp = (value, scale) =>
  Math.min(Math.max(value, Math.min(scale.start, scale.end)), Math.max(scale.start, scale.end));

// Six digits are finer than a pixel and keep the address short.
const round = (value) => Number(value.toPrecision(6));

document.addEventListener("pointerdown", (event) => {
  const svg = event.target.closest(".plot[data-x] svg.chart");
  if (!svg || event.button !== 0) return;
  const plot = svg.closest(".plot"), x = scaleOf(plot, "x"), y = scaleOf(plot, "y");
  const lasso = $("[data-lasso]", plot)?.getAttribute("aria-pressed") === "true";
  const first = pointOf(svg, event), path = [first];
  const shape = document.createElementNS(SVG, lasso ? "polygon" : "rect");
  shape.setAttribute("class", "brush drawing");
  svg.append(shape);
  // So that the brush goes on when the pointer leaves the plot.
  svg.setPointerCapture(event.pointerId);
  event.preventDefault();
  const box = (last) => {
    const [x0, x1] = [clamp(first[0], x), clamp(last[0], x)].sort((a, b) => a - b);
    const heights = y ? [clamp(first[1], y), clamp(last[1], y)] : [28, svg.viewBox.baseVal.height - 42];
    const [y0, y1] = heights.sort((a, b) => a - b);
    return [x0, y0, x1, y1];
  };
  const move = (moved) => {
    const last = pointOf(svg, moved);
    path.push(last);
    if (lasso) return shape.setAttribute("points", path.map((p) => p.join(",")).join(" "));
    const [x0, y0, x1, y1] = box(last);
    for (const [name, value] of Object.entries({ x: x0, y: y0, width: x1 - x0, height: y1 - y0 }))
      shape.setAttribute(name, value);
  };
  const end = (ended) => {
    svg.removeEventListener("pointermove", move);
    svg.removeEventListener("pointerup", end);
    svg.removeEventListener("pointercancel", end);
    shape.remove();
    if (ended.type === "pointercancel") return;
    const columns = y ? [plot.dataset.x, plot.dataset.y].join("\n") : plot.dataset.x;
    const last = pointOf(svg, ended);
    // A click without a drag removes the selection.
    if (Math.hypot(last[0] - first[0], last[1] - first[1]) < 4 && path.length < 8) return select(columns, null);
    if (lasso) {
      // At most 400 corners, so that the lasso fits into an address.
      const step = Math.ceil(path.length / 400);
      const corners = path.filter((_, i) => i % step === 0).flatMap(([px, py]) => [round(x.value(px)), round(y.value(py))]);
      if (corners.length >= 6) select(columns, ["lasso", plot.dataset.x, plot.dataset.y, corners]);
      return;
    }
    const [x0, y0, x1, y1] = box(last);
    const wide = [x.value(x0), x.value(x1)].sort((a, b) => a - b).map(round);
    if (!y) return select(columns, ["range", plot.dataset.x, ...wide]);
    const high = [y.value(y0), y.value(y1)].sort((a, b) => a - b).map(round);
    select(columns, ["box", plot.dataset.x, ...wide, plot.dataset.y, ...high]);
  };
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerup", end);
  svg.addEventListener("pointercancel", end);
});

document.addEventListener("click", (event) => {
  const lasso = event.target.closest("[data-lasso]");
  if (lasso) lasso.setAttribute("aria-pressed", String(lasso.getAttribute("aria-pressed") !== "true"));
  if (event.target.closest("[data-png]")) savePng(event.target.closest(".plot"));
});

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-color]")) {
    const words = new URLSearchParams($(".state").dataset.address.slice(1));
    words.set("color", event.target.value);
    go("?" + words, { focus: "[data-color]" });
  }
  if (event.target.matches("form.filter select")) fitFilter();
});

async function savePng(plot) {
  const address = $("a[download]", plot).href;
  const text = await (await fetch(address)).blob();
  const url = URL.createObjectURL(text), picture = new Image();
  picture.onload = () => {
    const canvas = document.createElement("canvas");
    // Three times the size on screen, for use in print.
    canvas.width = 3 * picture.width;
    canvas.height = 3 * picture.height;
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((png) => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(png);
      link.download = plot.dataset.plot + ".png";
      link.click();
      URL.revokeObjectURL(url);
    });
  };
  picture.src = url;
}

// ---- One object ----------------------------------------------------------------------------------

function markRow(index) {
  for (const row of $$(".objects tbody tr")) row.classList.toggle("chosen", row.dataset.index === String(index));
}

async function showObject(index) {
  const place = $("#one");
  if (!place) return;
  markRow(index);
  try {
    place.innerHTML = (await part(`object/${index}/part`)).text;
    history.replaceState(null, "", location.pathname + location.search + "#o" + index);
    say($("h2", place).textContent);
  } catch (error) {
    say(error.message);
  }
}

document.addEventListener("click", (event) => {
  const row = event.target.closest(".objects tbody tr");
  const near = event.target.closest("a[data-object]");
  if ((!row && !near) || event.metaKey || event.ctrlKey) return;
  if (!$("#one")) return;
  event.preventDefault();
  showObject(near ? near.dataset.object : row.dataset.index);
});

document.addEventListener("keydown", (event) => {
  const row = event.target.closest?.(".objects tbody tr");
  if (!row || !["ArrowDown", "ArrowUp", "j", "k"].includes(event.key)) return;
  const next = ["ArrowDown", "j"].includes(event.key) ? row.nextElementSibling : row.previousElementSibling;
  if (!next) return;
  event.preventDefault();
  $("a.object", next).focus();
  showObject(next.dataset.index);
});

function redraw(viewer) {
  const words = new URLSearchParams();
  const shown = $("input[name=shown]:checked", viewer).value;
  const channels = $$("[data-channel]", viewer).map((one) => one.value);
  words.set("bands", shown === "" ? channels.join(",") : shown);
  words.set("brightness", (2 ** Number($("[data-stretch]", viewer).value)).toFixed(4));
  if ($("[data-linear]", viewer).checked) words.set("stretch", "linear");
  $(".big", viewer).src = viewer.dataset.cutout + "?" + words;
}

document.addEventListener("input", (event) => {
  const viewer = event.target.closest(".viewer");
  if (!viewer) return;
  if (event.target.matches("[data-zoom]")) {
    const big = $(".big", viewer), zoom = Number(event.target.value);
    big.style.width = big.getAttribute("width") * zoom + "px";
    big.style.height = big.getAttribute("height") * zoom + "px";
  } else redraw(viewer);
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    say("Copied " + button.dataset.copy);
  } catch {
    say("The browser does not allow this page to copy.");
  }
});

function watchPictures(within) {
  for (const picture of $$(".thumb img", within)) picture.addEventListener("error", lostPicture, { once: true });
}

async function lostPicture(event) {
  event.target.classList.add("gone");
  const note = $(".picture-reason");
  if (!note || !note.hidden) return;
  note.hidden = false;
  note.textContent = "Some pictures are missing: " + (await (await fetch(event.target.src)).text()).trim();
}

// ---- Ratings -------------------------------------------------------------------------------------

async function send(path, words) {
  const answer = await fetch(root + path, {
    method: "POST", body: new URLSearchParams(words), headers: { accept: "text/plain" },
  });
  const text = (await answer.text()).trim();
  if (!answer.ok) throw new Error(text);
  return text;
}

async function drawTeach() {
  const place = $("#teach"), mine = ++asked;
  const { text } = await part("teach/part" + location.search);
  if (mine !== asked) return;
  place.innerHTML = text;
  watchPictures(place);
  say($(".count", place).textContent);
}

let rating = Promise.resolve(); // requests follow one another, in the order of the keys

// `which` is called when the rating is sent, since a key applies to the object shown at that time.
function rate(which, number) {
  rating = rating.then(async () => {
    const index = which();
    if (index === undefined) return;
    try {
      const count = await send("rate", { index, rating: number });
      say(`Rated ${number}; ${count} rated`);
      if ($("#teach")) await drawTeach();
      else
        for (const button of $$(`form[data-rate="${index}"] button`))
          button.classList.toggle("chosen", button.value === String(number));
    } catch (error) {
      say(error.message);
    }
  });
}

function undo() {
  rating = rating.then(async () => {
    try {
      say(`Rating undone; ${await send("undo", {})} rated`);
      if ($("#teach")) await drawTeach();
    } catch (error) {
      say(error.message);
    }
  });
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.matches("form[data-rate]") && event.submitter) {
    event.preventDefault();
    rate(() => form.dataset.rate, event.submitter.value);
  } else if (form.matches("form[data-undo]")) {
    event.preventDefault();
    undo();
  }
});

document.addEventListener("change", (event) => {
  const form = event.target.closest("form[data-labels]");
  if (!form) return;
  history.replaceState(null, "", "?" + new URLSearchParams(new FormData(form)));
  drawTeach();
});

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input:not([type=checkbox],[type=radio],[type=range]), select, textarea")) return;
  if (event.metaKey || event.ctrlKey || event.altKey) return;
  const chosen = $("#one .one")?.dataset.index;
  if (/^[1-5]$/.test(event.key) && ($("#teach") || chosen)) {
    event.preventDefault();
    rate($("#teach") ? () => $("#teach .now")?.dataset.index : () => chosen, Number(event.key));
  }
  if (event.key === "u" && $("#teach, #one .one")) undo();
});

// ---- A run that is going on ------------------------------------------------------------------------

function awaitMap() {
  if ($("[data-pending]")) setTimeout(() => $("[data-pending]") && go($(".state").dataset.address, { push: false }), 700);
}

function follow() {
  const live = $("#live[data-events]");
  if (!live) return;
  const source = new EventSource(live.dataset.events);
  const draw = (event) => {
    // New markup loses the focus, which a keyboard user needs to go on.
    const focused = document.activeElement?.dataset?.log;
    const open = $("details", live)?.open;
    live.innerHTML = event.data;
    if (open) $("details", live).open = true;
    if (focused !== undefined) $(`[data-log="${focused}"]`, live)?.focus();
  };
  source.addEventListener("run", draw);
  source.addEventListener("end", (event) => {
    source.close(); // otherwise the browser would connect again
    draw(event);
    $(".going")?.remove();
    say($(".status", live).textContent);
  });
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-log]");
  if (!button) return;
  const dialog = $("#log");
  $("h2", dialog).textContent = "Log of rank " + button.dataset.log;
  $("pre", dialog).textContent = "…";
  dialog.showModal();
  $("pre", dialog).textContent = await (await fetch(`${root}log/${button.dataset.log}`)).text();
});

follow();
fitFilter();
watchPictures(document);
awaitMap();
if (/^#o\d+$/.test(location.hash)) showObject(location.hash.slice(2));
