"use strict";

const $ = (id) => document.getElementById(id);
const LAST = -1, WORST = 8, SLOW = 400, PAUSE = 250;

const state = { run: 0, beside: -1, moment: LAST, text: "", token: -1, changes: [], head: null };
let about = null;
let sides = []; // one of each run that is shown: its tokens, and what it predicted
let asking = 0; // the number of the latest look; answers to earlier ones are dropped
let stop = new AbortController();
const branches = []; // texts before each draw

// ------------------------------------------------------------------ small things

function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const visible = (text) =>
  text === "" ? "end" : text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
const token = (text) => element("span", { class: "token" }, visible(text));
const percent = (p) => (p < 0 ? "−" + percent(-p) : (p === 0 ? "0" : p >= 0.0995 ? (100 * p).toFixed(0) : p >= 0.001 ? (100 * p).toFixed(1) : "<0.1") + " %");
const bits = (nats) => (nats === null ? NaN : nats / Math.LN2); // null: no number that JSON has
const fixed = (value, count) => (Number.isFinite(value) ? value.toFixed(count) : "∞"); // an event of probability 0
const sum = (values) => values.reduce((total, value) => total + value, 0);

function say(words, wrong = false) {
  $("status").textContent = words;
  $("status").classList.toggle("wrong", wrong);
}

// answers come from the server, or from engine.js where the page is a file of its own
async function ask(address, body, signal) {
  if (globalThis.engine) return globalThis.engine.ask(address, body, signal);
  const answer = await fetch(`/api/${address}`, {
    method: body ? "POST" : "GET",
    headers: body ? { "Content-Type": "application/json" } : {},
    body: body ? JSON.stringify(body) : undefined,
    signal,
  }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error("The server no longer answers; start `lmlab explore` again.");
  });
  const found = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Error(found.error);
  return found;
}

function failed(error) {
  if (error.name !== "AbortError") say(error.message, true);
}

// ------------------------------------------------------------------ what is shown, as a link

function keep() {
  const { head, ...kept } = state;
  kept.fields = Object.fromEntries(FIELDS.filter((id) => $(id).value !== usual.get(id)).map((id) => [id, $(id).value]));
  if ($("typed").checked) kept.fields.typed = "on";
  history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(kept)));
}

// fields that belong to the link, where they are not as the page has them by itself
const FIELDS = ["temperature", "top-k", "top-p", "min-p", "seed", "rule", "rule-beside", "optimizer", "rate", "feature-place", "feature-multiple", "feature-active"];
const usual = new Map();
let linked = {};

function fill() {
  $("typed").checked = linked.typed === "on";
  for (const id of FIELDS) {
    usual.set(id, $(id).value);
    if (typeof linked[id] !== "string") continue;
    $(id).value = linked[id];
    if ($(id).value !== linked[id]) $(id).value = usual.get(id); // no such choice here
  }
}

function restore() {
  try {
    const kept = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    for (const key of Object.keys(state)) if (key in kept && key !== "head") state[key] = kept[key];
    linked = kept.fields ?? {};
  } catch {
    return false; // no link
  }
  state.run = Math.min(Math.max(0, state.run | 0), about.runs.length - 1);
  state.beside = Math.min(Math.max(-1, state.beside | 0), about.runs.length - 1);
  if (!Array.isArray(state.changes)) state.changes = [];
  state.changes = state.changes.filter((change) => typeof change?.kind === "string");
  return typeof state.text === "string" && location.hash.length > 1;
}

// ------------------------------------------------------------------ looking

function asked(side) {
  return { run: side.run, moment: side.moment, text: side.text, changes: side.changes };
}

// false where what is asked for cannot be shown
async function lookAgain() {
  stop.abort();
  stop = new AbortController();
  const mine = ++asking, signal = stop.signal;
  keep();
  showChanges();
  state.head = null; // what it looked at may have changed
  endWriting();
  const first = { run: state.run, moment: state.moment, changes: [...state.changes] };
  const both = state.beside < 0 ? [first] : [first, { run: state.beside, moment: LAST, changes: [] }];
  const now = both.map((side) => ({ ...side, text: state.text, texts: [], sizes: [], ids: [], plain: [], changed: [], direct: [], whyNot: "" }));
  const began = performance.now();
  try {
    for (const side of now) {
      let count = 1;
      for (let number = 0; number < count; number++) {
        const found = await ask("window", { ...asked(side), window: number }, signal);
        if (mine !== asking) return;
        count = found.count;
        if (number === 0) [side.texts, side.sizes, side.ids] = [found.texts, found.sizes, found.ids];
        for (const name of ["plain", "changed"]) if (found[name]) side[name].push(...positions(found[name]));
        if (found.direct?.nats) side.direct.push(...found.direct.nats);
        side.whyNot = found.direct?.why_not ?? side.whyNot;
        const shown = performance.now() - began > SLOW;
        $("stop").hidden = !shown || number === count - 1;
        if (shown) {
          say(`${number + 1} of ${count} windows`);
          if (sides === now && rowsFit(now)) for (const row of $("rows").children) row.paint();
          else {
            sides = now;
            showRows();
          }
        }
      }
    }
    sides = now;
    const size = sides[0].texts.length;
    state.token = size ? Math.min(Math.max(state.token, 0), size - 1) : -1;
    say(size ? `${size} token${size === 1 ? "" : "s"} in ${Math.round(performance.now() - began)} ms` : "Type a text, or choose a piece of held-out text.");
    showRows();
    await Promise.all([showChosen(), showNext()]);
    if (keepsWriting && mine === asking) writeOn().catch(failed); // what the slider or a change makes of it
    document.documentElement.dataset.drawn = mine; // for whoever waits for it
    return true;
  } catch (error) {
    if (mine !== asking || error.name === "AbortError") return; // another look has taken its place, or it was stopped
    failed(error);
    clearAll();
    return false;
  } finally {
    if (mine === asking) $("stop").hidden = true;
  }
}

// nothing of what was shown before is left to be taken for what is asked now
function clearAll() {
  sides = [];
  for (const id of ["rows", "chosen", "distribution", "cut"]) $(id).replaceChildren();
}

// whether there is a row for each side, and for its changes, with all of its tokens
function rowsFit(now) {
  const wanted = now.flatMap((side) => (side.changed.length ? [side, side] : [side]));
  const rows = [...$("rows").children];
  return rows.length === wanted.length && rows.every((row, number) => row.spans.length === wanted[number].texts.length);
}

function positions(told) {
  return told.nats.map((nats, at) => ({
    nats,
    rank: told.rank[at],
    guesses: told.guesses[at],
    lens: told.lens.map((block) => ({ text: block.texts[at], p: block.p[at], nats: block.nats[at] })),
  }));
}

// ------------------------------------------------------------------ rows of tokens

function showRows() {
  const rows = $("rows");
  rows.replaceChildren();
  sides.forEach((side, number) => {
    const name = about.runs[side.run].name;
    rows.append(rowOf(side, side.plain, number, sides.length > 1 || side.changed.length ? name : "", null));
    if (side.changed.length) rows.append(rowOf(side, side.changed, number, "with the changes", side.plain));
  });
}

function rowOf(side, told, number, name, beside) {
  const total = element("span"), inAll = element("span"), direct = element("span", { class: "quiet" });
  const heading = element("p", { class: "row-name" }, name ? element("strong", {}, name) : null, total, beside ? inAll : null, beside ? direct : null);
  const box = element("div", { class: `tokens${beside ? " changed" : ""}`, tabIndex: 0, role: "listbox", "aria-label": name || "tokens" });
  const spans = side.texts.map((text, at) => {
    const span = element("span", { role: "option", onclick: () => choose(number, at) }, text.includes("\n") ? text.replaceAll("\n", "⏎\n") : text || "▯");
    span.dataset.at = at;
    return span;
  });
  box.append(...spans);
  box.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    choose(0, Math.min(Math.max(0, state.token + move), sides[0].texts.length - 1));
  });
  const row = element("div", {}, heading, box);
  let painted = 0;
  row.spans = spans;
  row.paint = () => { // what has been told since the last time
    for (; painted < told.length; painted++) {
      const one = told[painted], span = spans[painted];
      const much = beside ? Math.abs(one.nats - beside[painted].nats) / 2 : one.nats / WORST;
      span.title = `${fixed(bits(one.nats), 2)} bits, rank ${one.rank + 1}`;
      span.style.setProperty("--much", Math.min(1, much).toFixed(3));
    }
    const perByte = (nats) => bits(nats.includes(null) ? Infinity : sum(nats)) / Math.max(1, sum(side.sizes.slice(0, told.length)));
    const own = perByte(told.map((one) => one.nats));
    total.textContent = `${fixed(own, 4)} bits per byte`;
    if (!beside) return;
    const before = perByte(beside.map((one) => one.nats));
    inAll.textContent = `in all ${signed(own - before)}`;
    inAll.className = own > before ? "worse" : "better";
    direct.textContent = side.direct.length === told.length ? `directly ${signed(perByte(side.direct) - before)}` : `direct effect: ${side.whyNot}`;
  };
  row.dataset.side = number;
  row.paint();
  mark(row, number);
  return row;
}

const signed = (value) => (value >= 0 ? "+" : "−") + fixed(Math.abs(value), 4);

// the token of a side that holds a byte of the text
function holding(side, byte) {
  let end = 0;
  return side.sizes.findIndex((size) => (end += size) > byte);
}

// the token of a side that holds the byte at which the chosen one begins
function counterpart(number) {
  return number === 0 ? state.token : holding(sides[number], sum(sides[0].sizes.slice(0, state.token)));
}

function mark(row, number) {
  const before = row.chosen, now = row.spans[counterpart(number)];
  for (const [span, chosen] of [[before, false], [now, true]]) {
    span?.classList.toggle("chosen", chosen);
    span?.setAttribute("aria-selected", chosen);
  }
  row.chosen = now;
}

function choose(number, at) {
  if (number > 0) { // the token of the first run that begins there
    at = Math.max(0, holding(sides[0], sum(sides[number].sizes.slice(0, at))));
  }
  state.token = at;
  state.head = null;
  keep();
  for (const row of $("rows").children) mark(row, Number(row.dataset.side));
  document.querySelector(".tokens .chosen")?.scrollIntoView({ block: "nearest" });
  showChosen().catch(failed);
}

// ------------------------------------------------------------------ at the chosen token

let chosenStop = new AbortController();

async function showChosen() {
  const cards = $("chosen");
  if (state.token < 0 || !sides.length) {
    cards.replaceChildren();
    return;
  }
  const made = sides.map((side, number) => predictions(side, counterpart(number), number)).filter(Boolean);
  const lens = lensOf(sides[0], state.token);
  if (lens) made.push(lens);
  cards.replaceChildren(...made);
  const mine = asking, at = state.token;
  if (at >= sides[0].texts.length) return;
  chosenStop.abort(); // an answer for another token is not waited for
  chosenStop = new AbortController();
  const found = await ask("token", { ...asked(sides[0]), token: at }, chosenStop.signal);
  if (mine !== asking || at !== state.token) return;
  if (found.heads.length) cards.append(headsOf(found));
  const knowsAll = !state.changes.some((change) => change.kind === "feature"); // these are found at one moment alone
  if (about.runs[state.run].moments.length > 1 && knowsAll) showHistory(mine, at).catch(failed);
  cards.append(...(found.features ?? []).map(featuresAt), ...byBlock(found.layers));
  shade();
}

function predictions(side, at, number) {
  const plain = side.plain[at], changed = side.changed[at];
  if (!plain) return null;
  const names = changed ? ["token", "as trained", "changed"] : ["token", "probability"];
  const later = new Map((changed?.guesses ?? []).map(([text, id, p]) => [id, [text, p]]));
  const rows = plain.guesses.map(([text, id, p]) => [text, id, p, later.get(id)?.[1]]);
  for (const [id, [text, p]] of later) if (!rows.some((row) => row[1] === id)) rows.push([text, id, undefined, p]);
  const body = rows.map(([text, id, p, q]) => element("tr", { class: id === side.ids[at] ? "came" : "" },
    element("td", {}, token(text)), bar(p), changed ? bar(q) : null));
  const title = `${sides.length > 1 ? about.runs[side.run].name + ": " : ""}likeliest where ${visible(side.texts[at])} came`;
  const cost = element("p", { class: "note" }, `${fixed(bits(plain.nats), 3)} bits, rank ${plain.rank + 1}`
    + (changed ? `; changed: ${fixed(bits(changed.nats), 3)} bits, rank ${changed.rank + 1}` : ""));
  return element("div", { class: "card" }, element("h3", {}, title), cost, tableOf(names, body));
}

function bar(p) {
  if (p === undefined) return element("td", {}, "lower");
  return element("td", { class: "number" }, element("meter", { min: 0, max: 1, value: p }), " ", percent(p));
}

function tableOf(names, rows) {
  return element("table", {}, element("thead", {}, element("tr", {}, ...names.map((name) => element("th", {}, name)))),
    element("tbody", {}, ...rows));
}

function lensOf(side, at) {
  const one = (side.changed.length ? side.changed : side.plain)[at];
  if (!one || !one.lens.length) return null;
  const rows = one.lens.map((block, number) => element("tr", {},
    element("td", {}, `block ${number}`), element("td", {}, token(block.text)), bar(block.p),
    element("td", { class: "number" }, fixed(bits(block.nats), 2))));
  return element("div", { class: "card" }, element("h3", {}, "Had it stopped behind a block (logit lens)"),
    tableOf(["", "likeliest", "probability", "bits"], rows));
}

function headsOf(found) {
  const rows = found.heads.map((head) => {
    const where = head.weights.indexOf(Math.max(...head.weights));
    const token_there = found.begin + where - 1;
    const text = token_there < 0 ? "start" : sides[0].texts[token_there];
    const block = head.place.split(".")[1];
    const name = `block ${block}, head ${head.head}`;
    const place = head.place.replace(/pattern$/, "head_outputs");
    const seen = () => { state.head = { begin: found.begin, weights: head.weights }; shade(); };
    return element("tr", { "data-head": `${head.place} ${head.head}` },
      element("td", {}, element("button", { type: "button", title: "where it looked", onclick: seen, onmouseenter: seen }, name)),
      element("td", {}, token_there < 0 ? "start" : token(text)),
      element("td", { class: "number" }, percent(head.weights[where])),
      element("td", {}, scaler(place, head.head)), element("td", { class: "role note" }));
  });
  const card = element("div", { class: "card heads" }, element("h3", {}, "Where each head looked most"), tableOf(["", "at", "weight", "scale", "as a rule"], rows));
  showRoles(card).catch(failed);
  return card;
}

// what each head does on held-out text, and on random text read twice
const ROLES = { previous: "the token before", itself: "the token itself", first: "the first token", induction: "what came next the last time" };
const roles = new Map(); // by run and moment

async function showRoles(card) {
  const key = `${state.run} ${state.moment}`;
  if (!roles.has(key)) roles.set(key, ask("heads", { run: state.run, moment: state.moment }));
  const found = await roles.get(key);
  for (const row of card.querySelectorAll("[data-head]")) {
    const [place, head] = row.dataset.head.split(" ");
    const shares = Object.entries(found[place] ?? {}).map(([role, values]) => [role, values[head]]).sort((one, other) => other[1] - one[1]);
    if (!shares.length) continue;
    const cell = row.querySelector(".role");
    cell.textContent = `${shares[0][0]} ${shares[0][1].toFixed(2)}`;
    cell.title = shares.map(([role, share]) => `weight on ${ROLES[role]}: ${share.toFixed(3)}`).join("\n");
  }
}

// the chosen token at each moment of the run
async function showHistory(mine, at) {
  const found = await ask("history", { ...asked(sides[0]), token: at });
  if (mine !== asking || at !== state.token) return;
  const shown = [state.moment < 0 ? found.moments.length - 1 : state.moment];
  const rows = found.moments.map((moment, number) => element("tr", { class: shown.includes(number) ? "came" : "" },
    element("td", {}, element("button", { type: "button", title: "show this moment", onclick: () => goTo(number) }, `step ${nameOf(about.runs[state.run], number)}`.replace("step the", "the"))),
    ...(moment.guess === null ? [element("td", { colSpan: 3 }, "it had diverged")]
      : [element("td", { class: "number" }, fixed(bits(moment.nats), 2)), bar(moment.nats === null ? 0 : Math.exp(-moment.nats)), element("td", {}, token(moment.guess))])));
  const card = element("div", { class: "card history" }, element("h3", {}, `Over training: ${visible(sides[0].texts[at])}`), tableOf(["", "bits", "probability", "likeliest"], rows));
  const group = $("chosen").querySelector(".group");
  $("chosen").querySelector(".history")?.remove();
  $("chosen").insertBefore(card, group);
}

// the run's end is not its last snapshot where an optimizer recommends other weights than it trains
const nameOf = (run, moment) => (moment === run.moments.length - 1 ? "the end" : run.moments[moment].toLocaleString("en"));

// what was found of another run or moment
function forget() {
  $("steps").replaceChildren();
  $("found").replaceChildren();
  $("unit").hidden = true;
}

function goTo(moment) {
  state.moment = moment;
  state.changes = state.changes.filter((change) => change.kind !== "feature"); // each moment has its own
  forget();
  state.head = null;
  showRun();
  lookAgain();
}

// the places of a block under one heading, which a narrow screen has closed
function byBlock(layers) {
  const groups = new Map();
  for (const layer of layers) {
    const block = /^blocks\.\d+/.exec(layer.place)?.[0] ?? "around the blocks";
    if (!groups.has(block)) groups.set(block, []);
    groups.get(block).push(layerOf(layer));
  }
  return [...groups].map(([block, made]) => {
    const group = element("details", { class: "group", open: shut.get(block) ?? matchMedia("(min-width: 34rem)").matches },
      element("summary", {}, block.replace("blocks.", "block ")), element("div", { class: "cards" }, ...made));
    group.addEventListener("toggle", () => shut.set(block, group.open));
    return group;
  });
}
const shut = new Map(); // which of these somebody has closed or opened

function layerOf(layer) {
  const isTable = about.runs[state.run].tables.includes(layer.place);
  const buttons = layer.top.map(([unit, value]) => element("button", {
    type: "button", title: `${layer.place}, part ${unit}: ${value}`,
    onclick: () => showUnit(layer.place, unit).catch(failed),
  }, `${unit}: ${Number(value.toPrecision(3))}`));
  return element("div", { class: "card", "data-place": layer.place }, element("h3", {}, layer.place),
    element("p", { class: "note" }, `length ${Number(layer.length.toPrecision(4))}, ${layer.active} of ${layer.size} active `, scaler(layer.place, null)),
    isTable ? null : element("div", { class: "parts" }, ...buttons));
}

function scaler(place, unit) {
  const found = state.changes.find((one) => one.kind === "scale" && one.place === place && one.unit === unit && one.at === null);
  return element("input", {
    type: "number", step: "any", value: found ? found.factor : 1, "aria-label": `factor of ${place}${unit === null ? "" : ` ${unit}`}`,
    onchange: (event) => {
      if (event.target.value === "") event.target.value = 1; // an empty field is no factor
      scale(place, unit, event.target.valueAsNumber);
    },
  });
}

function scale(place, unit, factor) {
  if (!Number.isFinite(factor)) return;
  state.changes = state.changes.filter((one) => !(one.kind === "scale" && one.place === place && one.unit === unit));
  if (factor !== 1) state.changes.push({ kind: "scale", place, unit, at: null, factor });
  lookAgain();
}

function shade() {
  const row = $("rows").firstElementChild;
  for (const span of row?.shaded ?? []) span.classList.remove("seen");
  if (!row || !state.head) return;
  const first = state.head.begin - 1; // its first weight is on BOS, or on the token before the window
  row.shaded = state.head.weights.map((weight, number) => {
    const span = row.spans[first + number];
    span?.classList.add("seen");
    span?.style.setProperty("--at", Math.min(1, weight * 1.5).toFixed(3));
    return span;
  }).filter(Boolean);
}

async function showUnit(place, unit) {
  const found = await ask("unit", { run: state.run, moment: state.moment, place, unit });
  showTexts(`${place}, part ${unit}: where it is most active in held-out text `, scaler(place, unit), found);
}

function showTexts(title, scale, found) {
  $("unit").hidden = false;
  $("unit").made = state.changes.length;
  $("of-unit").replaceChildren(title, scale);
  $("unit-texts").replaceChildren(...found.texts.map((one) => element("li", {},
    one.before.slice(0, -1).join(""), element("b", {}, one.before.at(-1) ?? "start"), `  → ${visible(one.next)}  (${Number(one.value.toPrecision(3))})`)));
  $("unit").scrollIntoView({ block: "nearest" });
}

// ------------------------------------------------------------------ changes

function inWords(change) {
  const where = change.kind === "pin" ? "" : change.place + ((change.unit ?? null) === null ? "" : `, part ${change.unit}`);
  const at = change.at === null || change.at === undefined ? "" : ` at token ${change.at}`;
  if (change.kind === "feature") return `${change.place}, feature ${change.feature} × ${change.factor}${at}`;
  if (change.kind === "scale") return `${where} × ${change.factor}${at}`;
  if (change.kind === "patch") return `${where} as at token ${change.of} of “${change.text}”${at}`;
  if (change.kind === "add") return `${where} + ${change.strength} × (“${change.plus}” − “${change.minus}”)${at}`;
  const known = sides[0]?.ids.indexOf(change.token) ?? -1;
  return `token ${change.at} is read as ${known < 0 ? `the token of id ${change.token}` : visible(sides[0].texts[known])}`;
}

function showChanges() {
  if ($("unit").made > state.changes.length) $("unit").hidden = true; // its field shows a factor that is gone
  $("unit").made = state.changes.length;
  $("undo").hidden = !state.changes.length;
  $("changes").replaceChildren(...state.changes.map((change, number) => element("li", {}, inWords(change), " ",
    element("button", { type: "button", onclick: () => { state.changes.splice(number, 1); lookAgain(); } }, "remove"))));
}

function moreFields() {
  const kind = $("more-kind").value;
  for (const label of document.querySelectorAll("#more [data-for]")) label.hidden = !label.dataset.for.includes(kind);
}

async function addMore(event) {
  event.preventDefault();
  const kind = $("more-kind").value, at = state.token, before = [...state.changes];
  if (kind !== "pin" && !/^\s*\d*\s*$/.test($("more-unit").value)) return say("A part is a number, or empty for all of them.", true);
  if (kind === "add" && !Number.isFinite($("more-strength").valueAsNumber)) return say("A direction needs a strength, such as 1.", true);
  const unit = $("more-unit").value.trim() === "" ? null : Number($("more-unit").value);
  const here = $("more-here").checked ? at : null;
  if (kind === "patch") state.changes.push({ kind, place: $("more-place").value, unit, at: here, text: $("more-text").value, of: Number($("more-of").value) });
  if (kind === "add") state.changes.push({ kind, place: $("more-place").value, unit, at: here, plus: $("more-plus").value, minus: $("more-minus").value, strength: Number($("more-strength").value) });
  if (kind === "pin") {
    const typed = $("more-token").value.replaceAll("␣", " ").replaceAll("⏎", "\n").replaceAll("⇥", "\t");
    const id = sides[0]?.ids[sides[0].texts.indexOf(typed)];
    if (id === undefined) return say("A pinned token has to stand somewhere in the text; write it there first.", true);
    state.changes.push({ kind, at, token: id });
  }
  if ((await lookAgain()) !== false) return;
  const why = $("status").textContent;
  state.changes = before; // what cannot be done is not kept
  await lookAgain();
  say(why, true);
}

// ------------------------------------------------------------------ generation

async function showNext() {
  const side = sides[0];
  if (!side) return;
  const mine = ++nexts;
  let found;
  try {
    found = await ask("next", { ...asked(side), ...drawnBy(0) });
  } catch (error) {
    if (mine !== nexts) return;
    $("distribution").replaceChildren();
    $("distribution").drawn = null;
    $("cut").textContent = error.message;
    $("cut").classList.add("wrong");
    return;
  }
  if (mine !== nexts) return;
  $("cut").classList.remove("wrong");
  $("cut").textContent = `${found.kept} of ${found.of} tokens may be drawn; ${percent(found.cut_off)} of the probability is cut off.`;
  const rows = found.tokens.slice(0, 16).map((one) => element("tr", { class: one.id === found.drawn ? "came" : "" },
    element("td", {}, element("button", { type: "button", title: "go on with this one", disabled: one.ends, onclick: () => goOn(one) }, visible(one.ends ? "" : one.text))),
    bar(one.plain), bar(one.heated), bar(one.p)));
  $("distribution").replaceChildren(element("div", { class: "card" }, tableOf(["", "as believed", "at this temperature", "after the cuts"], rows)));
  $("distribution").drawn = found.tokens.find((one) => one.id === found.drawn);
}

let nexts = 0; // the number of the latest question; answers to earlier ones are dropped

function goOn(one) {
  keepsWriting = false;
  if (!one || one.ends) return say("The model ends the document here.");
  if (one.text.includes("\ufffd")) return say("That token is a part of a character and cannot be typed by itself; take another one.", true);
  branches.push(state.text);
  $("back").disabled = false;
  setText(state.text + one.text);
  $("seed").value = Number($("seed").value) + 1;
  state.token = 1e9;
  lookAgain();
}

// a longer text, drawn token by token; it stays apart from the text that is read
async function writeOn() {
  if (!sides.length) return;
  const mine = ++writing;
  keepsWriting = true;
  $("writing").textContent = "stop";
  let text = "";
  const show = () => $("sample").replaceChildren(state.text.slice(-80), element("b", {}, text));
  try {
    for (let number = 0; number < MOST_WRITTEN && mine === writing; number++) {
      const found = await ask("next", { ...asked(sides[0]), text: state.text + text, ...drawnBy(number) });
      if (mine !== writing) return;
      const one = found.tokens.find((each) => each.id === found.drawn);
      if (one.ends || one.text.includes("\ufffd")) break;
      text += one.text;
      show();
    }
  } finally {
    if (mine === writing) endWriting();
  }
}
let writing = 0, keepsWriting = false; // whether it writes again after a change or at another moment
const MOST_WRITTEN = 200;

function endWriting() {
  writing++;
  $("writing").textContent = `write ${MOST_WRITTEN} tokens`;
}

function stopWriting() {
  keepsWriting = false;
  endWriting();
}

const drawnBy = (more) => ({
  temperature: Number($("temperature").value), top_k: Number($("top-k").value), top_p: Number($("top-p").value),
  min_p: Number($("min-p").value), seed: Number($("seed").value) + more,
});

function setText(text) {
  state.text = text;
  $("text").value = text;
}

// ------------------------------------------------------------------ the page

function showRun() {
  const run = about.runs[state.run];
  const slider = $("moment");
  slider.max = run.moments.length - 1;
  if (state.moment >= run.moments.length) state.moment = LAST;
  slider.value = state.moment < 0 ? run.moments.length - 1 : state.moment;
  slider.disabled = run.moments.length < 2;
  $("step").textContent = slider.disabled ? `${run.moments[0].toLocaleString("en")} (no snapshots)` : nameOf(run, Number(slider.value));
  $("about").textContent = `${run.model.name}, ${run.parameters.toLocaleString("en")} parameters, ${run.blocks} blocks, `
    + `${run.tokenizer} with ${run.vocabulary_size.toLocaleString("en")} tokens, context ${run.context}`
    + (run.rounding ? `; weights rounded to 16 bits: ${run.rounding.bits_per_byte.toFixed(4)} bits per byte of held-out text became ${run.rounding.rounded.toFixed(4)}` : "");
  slider.parentElement.hidden = Boolean(globalThis.engine) && slider.disabled;
  $("more-place").replaceChildren(...run.places.filter((place) => !/pattern$|logits$/.test(place)).map((place) => element("option", {}, place)));
  $("learning").hidden = $("features").hidden = !about.rules; // a file of its own has no training text
  if (about.rules) offerSteps();
  offerPlaces();
  if (Number($("model").dataset.drawn) !== state.run) showDrawing().catch(failed);
  else showWeights().catch(failed);
}

async function begin() {
  about = await ask("about");
  const linked = restore();
  $("run").replaceChildren(...about.runs.map((run, number) => element("option", { value: number }, run.name)));
  $("beside").replaceChildren(element("option", { value: -1 }, "nothing"), ...about.runs.map((run, number) => element("option", { value: number }, run.name)));
  $("run").value = state.run;
  $("beside").value = state.beside;
  $("held-out").replaceChildren(...about.held_out.map((piece) => element("button", {
    type: "button", title: "a piece of held-out text", onclick: () => { setText(piece); state.token = 0; lookAgain(); },
  }, visible(piece.slice(0, 24)) + "…")));
  setText(linked ? state.text : about.held_out[0] ?? "");
  showRun();
  fill();
  moreFields();

  let typing = 0;
  $("text").addEventListener("input", () => {
    state.text = $("text").value;
    clearTimeout(typing);
    keepsWriting = false;
    typing = setTimeout(lookAgain, PAUSE);
  });
  $("run").addEventListener("change", () => { state.run = Number($("run").value); state.moment = LAST; state.changes = []; forget(); showRun(); lookAgain(); });
  $("beside").addEventListener("change", () => { state.beside = Number($("beside").value); lookAgain(); });
  $("moment").addEventListener("input", () => goTo(Number($("moment").value)));
  $("undo").addEventListener("click", () => { state.changes = []; lookAgain(); });
  $("stop").addEventListener("click", () => { stop.abort(); asking++; $("stop").hidden = true; say("Stopped; what was read is shown."); });
  $("more-kind").addEventListener("change", moreFields);
  $("more").addEventListener("submit", addMore);
  $("next").addEventListener("input", () => { keep(); showNext().catch(failed); });
  for (const id of ["microscope", "autoencoder"]) $(id).addEventListener("input", keep);
  $("next").addEventListener("submit", (event) => { event.preventDefault(); goOn($("distribution").drawn); });
  $("back").addEventListener("click", () => { setText(branches.pop()); $("back").disabled = !branches.length; state.token = 1e9; lookAgain(); });
  endWriting();
  $("writing").addEventListener("click", () => ($("writing").textContent === "stop" ? stopWriting() : writeOn().catch(failed)));
  $("autoencoder").addEventListener("submit", (event) => { event.preventDefault(); findFeatures().catch(failed); });
  $("stop-features").addEventListener("click", () => ask("stop", {}).catch(failed));
  $("microscope").addEventListener("submit", (event) => { event.preventDefault(); takeStep().catch(failed); });
  $("share").addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(location.href); say("The link is copied; it holds text and changes, not the model."); }
    catch { say("Copy the address of this page: it holds text and changes, not the model."); }
  });
  await lookAgain();
}

begin().catch(failed);
