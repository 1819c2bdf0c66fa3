"use strict";
// The model as it is built: boxes inside boxes, each with what it weighs, costs and says of itself.

async function showDrawing() {
  const run = state.run;
  $("model").replaceChildren(element("p", { class: "note" }, "drawing …"));
  const root = await ask("drawing", { run });
  if (run !== state.run) return;
  $("model").replaceChildren(boxOf(root, root, 0));
  $("model").dataset.drawn = run;
  await showWeights();
}

// how large each weight is at the moment that the slider shows, and how far it has gone
async function showWeights() {
  const asked = { run: state.run, moment: state.moment };
  const found = await ask("weights", asked);
  if (asked.run !== state.run || asked.moment !== state.moment) return;
  for (const span of document.querySelectorAll("#model [data-weight]")) {
    const weight = found[span.dataset.weight];
    if (!weight) continue; // it shares the numbers of another one
    const way = weight.moved === null ? "" : `, moved by ${digits(weight.moved, 3)} of its first length`;
    span.textContent = ` · RMS ${digits(weight.rms, 3)}${about.runs[state.run].moments.length > 1 ? way : ""}`;
  }
}

function boxOf(module, root, depth) {
  const share = root.parameters ? percent(module.parameters / root.parameters) : "";
  const facts = [`${count(module.parameters)} parameters${depth ? ` (${share})` : ""}`];
  if (module.flops) facts.push(`${count(module.flops)} FLOPs a token`);
  const weights = Object.entries(module.weights).map(([name, shape]) => element("div", { class: "note" }, `${name} ${shape.join(" × ")}`,
    element("span", { "data-weight": `${module.path}.${name}`.replace(/^\./, "") })));
  const summary = element("summary", {}, element("b", {}, module.name), " ", element("span", { class: "kind" }, module.class), " ",
    element("span", { class: "note" }, facts.join(" · ")));
  const box = element("details", { class: "box", open: depth < 1 }, summary);
  box.dataset.path = module.path;
  if (module.doc) box.append(element("details", { class: "doc" }, element("summary", {}, module.file), element("pre", {}, module.doc)));
  const inside = module.inside.map((child) => boxOf(child, root, depth + 1));
  box.append(...weights, ...placesOf(module), ...(depth ? inside : stream(inside, module)));
  if (/^blocks\.\d+$/.test(module.path)) summary.after(...blockButtons(module));
  summary.after(...tableButtons(module));
  return box;
}

// the blocks stand one above the other, as the stream goes through them
function stream(inside, module) {
  return inside.flatMap((box, number) => (number + 1 < inside.length ? [box, element("div", { class: "flow", title: `what flows on from ${module.inside[number].name}` }, "↓")] : [box]));
}

function placesOf(module) {
  const buttons = Object.entries(module.places).map(([place, shape]) => element("button", {
    type: "button", title: `${place}, of shape ${shape.join(" × ")}: see it at the chosen token`, onclick: () => goToPlace(place),
  }, `${place.split(".").pop()} `, element("span", { class: "note" }, shape.join(" × "))));
  return buttons.length ? [element("div", { class: "parts" }, ...buttons)] : [];
}

function goToPlace(place) {
  const named = place.replace(/pattern$/, "head_outputs");
  const card = [...document.querySelectorAll("#chosen [data-place]")].find((one) => [place, named].includes(one.dataset.place));
  if (!card) return say(place === "logits" ? "The logits are the likeliest tokens, at the chosen token." : "Choose a token first: places are shown there.");
  card.closest("details").open = true;
  card.scrollIntoView({ block: "center" });
  card.classList.add("found");
  setTimeout(() => card.classList.remove("found"), 1500);
}

// what a block adds to the stream comes from these
const WRITES = /\.(head_outputs|units|state)$/;

function tableButtons(module) {
  const tables = about.runs[state.run].tables.filter((table) => table.startsWith(`${module.path}.`));
  const deeper = module.inside.some((child) => tables.length && tables.every((table) => table.startsWith(`${child.path}.`)));
  return tables.length && module.path && !deeper ? [switchOf(tables, "switch its n-gram tables off")] : [];
}

function blockButtons(module) {
  const writes = about.runs[state.run].places.filter((place) => place.startsWith(`${module.path}.`) && WRITES.test(place));
  return writes.length ? [switchOf(writes, "switch the block off")] : [];
}

function switchOf(places, words) {
  const factor = (value) => {
    state.changes = state.changes.filter((one) => !(one.kind === "scale" && one.unit === null && places.includes(one.place)));
    if (value !== 1) for (const place of places) state.changes.push({ kind: "scale", place, unit: null, at: null, factor: value });
    lookAgain();
  };
  return element("div", { class: "parts" },
    element("button", { type: "button", title: "scale what it adds to the stream by 0", onclick: () => factor(0) }, words),
    element("button", { type: "button", onclick: () => factor(1) }, "on"));
}

function count(number) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (number >= size) return `${(number / size).toPrecision(3)} ${unit}`;
  return String(number);
}
