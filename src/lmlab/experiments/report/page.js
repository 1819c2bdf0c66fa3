const charts = JSON.parse(document.getElementById("charts").textContent);
const root = document.documentElement;
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const hidden = new Set(), views = new Map();

function look() {
  const style = getComputedStyle(root), of = name => style.getPropertyValue("--" + name).trim();
  const font = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
  const words = { labelColor: of("quiet"), titleColor: of("quiet"), labelFontSize: 12, titleFontSize: 12, titleFontWeight: 400 };
  return {
    background: "transparent", font, view: { stroke: null }, text: { color: of("ink"), fontSize: 12 },
    axis: { ...words, gridColor: of("line"), domainColor: of("line"), tickColor: of("line"), titlePadding: 8 },
    axisX: { grid: false },
    range: { category: [0, 1, 2, 3, 4, 5, 6, 7].map(n => of("c" + n)), heatmap: [of("low"), of("middle"), of("high")], ordinal: [of("on-low"), of("on-high")] },
    style: {
      reference: { color: of("reference") }, "reference-word": { color: of("quiet"), fontSize: 11 },
      "reference-line": { color: of("quiet"), strokeDash: [4, 4], strokeWidth: 1 }, right: { color: of("c1"), strokeWidth: 2 },
    },
  };
}

// What a reader chose in a chart, to be kept when it is drawn again.
const chosen = (view, spec) => (spec.params || []).map(p => p.bind && typeof p.bind === "object" && view ? { ...p, value: view.signal(p.name) } : p.name === "hidden" ? { ...p, value: [...hidden] } : p);

async function drawOne(place, config) {
  const spec = charts[place.id], old = views.get(place.id);
  const params = chosen(old, spec);
  if (old) old.finalize();
  const embedded = await vegaEmbed(place, { ...spec, config, params }, { actions: false, renderer: "svg", logLevel: 1, ...(spec.usermeta || {}).embedOptions, tooltip: { theme: root.dataset.scheme } });
  views.set(place.id, embedded.view);
}

// One drawing after another: a second click on the button waits for the first.
let drawing = Promise.resolve();
function draw(places) {
  drawing = drawing.then(async () => {
    const config = look();
    for (const place of places()) await drawOne(place, config);
    root.dataset.drawn = String(1 + Number(root.dataset.drawn || 0));
  });
  return drawing.then(markEdges);
}
const visible = () => [...document.querySelectorAll(".vega")].filter(place => !place.closest("[hidden]"));

function set(scheme) {
  root.dataset.scheme = scheme;
  for (const place of document.querySelectorAll(".panel[hidden] .vega")) { // drawn when its panel is shown
    if (views.has(place.id)) { views.get(place.id).finalize(); views.delete(place.id); }
  }
  return draw(visible);
}
document.getElementById("scheme").onclick = () => set(root.dataset.scheme === "dark" ? "light" : "dark");
dark.addEventListener("change", () => set(dark.matches ? "dark" : "light"));

for (const button of document.querySelectorAll(".variant")) {
  const number = Number(button.dataset.variant);
  button.style.setProperty("--own", `var(--c${number})`);
  button.onclick = () => {
    hidden.has(number) ? hidden.delete(number) : hidden.add(number);
    button.setAttribute("aria-pressed", String(!hidden.has(number)));
    for (const [name, view] of views) {
      if ((charts[name].params || []).some(p => p.name === "hidden")) view.signal("hidden", [...hidden]).runAsync();
    }
  };
}
for (const title of document.querySelectorAll(".who")) title.style.color = `var(--c${title.dataset.colour})`;
// One choice of a variant for the whole page: each chooser follows the others where it has it.
const choosers = [...document.querySelectorAll(".chooser select")];
for (const select of choosers) select.onchange = () => {
  for (const chooser of choosers) {
    if (![...chooser.options].some(option => option.value === select.value)) continue;
    chooser.value = select.value;
    for (const panel of chooser.closest(".choice").querySelectorAll(":scope > .panel")) panel.hidden = panel.dataset.panel !== select.value;
  }
  draw(() => visible().filter(place => !views.has(place.id)));
};

// An arrow at the edge of what scrolls, as long as there is more on that side.
function markEdges() {
  for (const frame of document.querySelectorAll(".scrolls")) {
    const inner = frame.firstElementChild, rest = inner.scrollWidth - inner.clientWidth - inner.scrollLeft;
    frame.classList.toggle("more-left", inner.scrollLeft > 2);
    frame.classList.toggle("more-right", rest > 2);
    frame.classList.toggle("more-below", inner.scrollHeight - inner.clientHeight - inner.scrollTop > 2 && inner.matches(".coloured"));
  }
}
for (const frame of document.querySelectorAll(".scrolls")) frame.firstElementChild.addEventListener("scroll", markEdges, { passive: true });
for (const fold of document.querySelectorAll("details")) fold.addEventListener("toggle", markEdges);
window.addEventListener("resize", markEdges);

// The likeliest tokens at the piece of held-out text that is pointed at.
const hint = document.getElementById("hint");
const signs = { " ": "␣", "\n": "⏎", "\t": "⇥" };
const seen = text => text === null ? "(end of document)" : text.replace(/[ \n\t]/g, sign => signs[sign]);
const percent = share => share >= 0.001 ? (100 * share).toFixed(share >= 0.0995 ? 0 : 1) + "%" : "<0.1%";

function element(tag, text, style = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = style;
  return made;
}

function show(piece) {
  const box = piece.parentElement, [nats, guesses] = texts[box.id][[...box.children].indexOf(piece)];
  const title = `${seen(piece.textContent)}  ${(nats / Math.LN2).toFixed(2)} bits, probability ${percent(Math.exp(-nats))}`;
  const rows = guesses.map(([text, share]) => {
    const row = element("tr", "", text === piece.textContent ? "came" : "");
    row.append(element("td", seen(text)), element("td", percent(share)));
    return row;
  });
  const table = document.createElement("table");
  table.append(...rows);
  hint.replaceChildren(element("strong", title), table);
  hint.hidden = false;
  const at = piece.getBoundingClientRect(), room = root.clientWidth - hint.offsetWidth - 8;
  hint.style.left = `${Math.max(8, Math.min(at.left, room)) + window.scrollX}px`;
  const below = at.bottom + 6 + hint.offsetHeight < window.innerHeight;
  hint.style.top = `${(below ? at.bottom + 6 : at.top - hint.offsetHeight - 6) + window.scrollY}px`;
  for (const other of document.querySelectorAll(".coloured .here")) other.classList.remove("here");
  piece.classList.add("here");
}

function forget(box) {
  hint.hidden = true;
  for (const piece of box.querySelectorAll(".here")) piece.classList.remove("here");
}

for (const box of document.querySelectorAll(".coloured")) {
  box.addEventListener("pointerover", event => { if (event.target.localName === "i") show(event.target); });
  box.addEventListener("pointerleave", () => forget(box));
  box.addEventListener("scroll", () => { hint.hidden = true; }, { passive: true });
  box.addEventListener("blur", () => forget(box));
  box.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const pieces = [...box.querySelectorAll("i")], now = pieces.findIndex(piece => piece.classList.contains("here"));
    const next = pieces[Math.max(0, Math.min(pieces.length - 1, now + step))];
    next.scrollIntoView({ block: "nearest" });
    show(next);
    event.preventDefault();
  });
}
set(dark.matches ? "dark" : "light");
