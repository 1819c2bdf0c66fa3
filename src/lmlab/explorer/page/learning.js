"use strict";
// One step of learning under the microscope: what a rule asked for, and what came of it.

const NOTHING = "-"; // no second rule
const OWN = ""; // the run's own rule or optimizer

function offerSteps() {
  const own = about.runs[state.run].trained_with;
  const offer = (id, key, names, none) => {
    const chosen = $(id).options.length ? $(id).value : null;
    const first = none ? [element("option", { value: NOTHING }, "nothing")] : [];
    const ours = own[key] ? `the run's: ${own[key]}` : "that of params.yaml";
    $(id).replaceChildren(...first, element("option", { value: OWN }, ours), ...names.map((name) => element("option", { value: name }, name)));
    if ([...$(id).options].some((option) => option.value === chosen)) $(id).value = chosen;
  };
  offer("rule", "learning_rule", about.rules, false);
  offer("rule-beside", "learning_rule", about.rules, true);
  offer("optimizer", "optimizer", about.optimizers, false);
}

async function takeStep() {
  if (!Number.isFinite($("rate").valueAsNumber)) return say("A step needs a rate, such as 0.1 of the peak.", true);
  const wished = [$("rule").value, $("rule-beside").value].filter((name) => name !== NOTHING);
  const common = {
    run: state.run, moment: state.moment, text: state.text, typed: $("typed").checked,
    optimizer: $("optimizer").value, rate: Number($("rate").value),
  };
  const mine = ++stepping;
  $("steps").replaceChildren(element("p", { class: "note" }, "taking the step …"));
  const shown = [];
  for (const rule of wished) {
    try {
      shown.push(stepOf(await ask("step", { ...common, rule })));
    } catch (error) {
      shown.push(element("div", { class: "card" }, element("p", { class: "worse" }, error.message)));
    }
    if (mine !== stepping) return;
  }
  $("steps").replaceChildren(...shown);
  $("steps").dataset.drawn = mine; // for whoever waits for it
}
let stepping = 0;

function stepOf(found) {
  const title = `${found.rule || "the rule of params.yaml"}, ${found.optimizer || "its optimizer"}`;
  const share = found.happened === 0 ? "" : ` (${percentOf(found.predicted, found.happened)} of it)`;
  const facts = [
    ["loss of the batch before", `${digits(bits(found.loss))} bits a token`],
    ["what happened to it", `${signedBits(found.happened)} bits`],
    ["what the first order predicted", `${signedBits(found.predicted)} bits${share}`],
    ["loss of held-out text", `${signedBits(found.held_out)} bits`],
    ["length of the step", digits(found.length)],
  ];
  const rows = facts.map(([name, value]) => element("tr", {}, element("td", {}, name), element("td", { class: "number" }, value)));
  return element("div", { class: "card step" },
    element("h3", {}, title),
    ...found.notes.map((note) => element("p", { class: "note" }, note)),
    element("table", {}, element("tbody", {}, ...rows)),
    unitsOf(found),
    ...movedOf("the batch", found.batch),
    ...movedOf("held-out text", found.beyond));
}

const digits = (value, count = 4) => (Number.isFinite(value) ? Number(value.toPrecision(count)).toString() : "–");
const signedBits = (nats) => (nats === null ? "not a number" : `${nats <= 0 ? "−" : "+"}${Math.abs(bits(nats)).toPrecision(3)}`);
const percentOf = (part, whole) => (part === null || whole === null ? "–" : `${Math.round((100 * part) / whole)} %`);

function unitsOf(found) {
  const names = ["unit", "signal", "weights", "length", "of the step", "first order"];
  const titles = {
    signal: "cosine between what arrives at the unit's output and the gradient there",
    weights: "cosine between what its weights are given and their gradient",
    length: "of what its weights are given, divided by the gradient's",
    "of the step": "its share of the squared length of the step",
    "first order": "bits by which its move changes the loss, to the first order",
  };
  const body = found.units.flatMap((unit) => {
    const inner = unit.weights.map((weight) => partRow(weight, null, "inner"));
    for (const row of inner) row.hidden = true;
    const toggle = element("button", {
      type: "button", title: `weight by weight; its signal comes ${unit.source}`, "aria-expanded": "false",
      onclick: () => {
        for (const row of inner) row.hidden = !row.hidden;
        toggle.setAttribute("aria-expanded", String(!inner[0]?.hidden));
      },
    }, unit.name);
    return [partRow(unit, toggle, ""), ...inner];
  });
  const head = element("tr", {}, ...names.map((name) => element("th", { title: titles[name] ?? "" }, name)));
  return element("table", { class: "units" }, element("thead", {}, head), element("tbody", {}, ...body));
}

function partRow(part, toggle, kind) {
  const ratio = part.true_length ? part.length / part.true_length : null;
  return element("tr", { class: kind },
    element("td", {}, toggle ?? part.name),
    cosine(part.signal), cosine(part.cosine),
    element("td", { class: "number" }, ratio === null ? "–" : `× ${digits(ratio, 3)}`),
    element("td", { class: "number" }, percent(part.share)),
    element("td", { class: "number" }, signedBits(part.predicted)));
}

function cosine(value) {
  if (value === undefined) return element("td", {}, "");
  if (value === null) return element("td", { class: "number" }, "–");
  const cell = element("td", { class: `number cosine ${value < 0 ? "worse" : ""}` }, value.toFixed(3));
  cell.style.setProperty("--length", Math.abs(value).toFixed(3));
  return cell;
}

const changeOf = (row, at) => (row.after[at] === null ? Infinity : row.after[at] - row.before[at]);

// tokens in the colour of what the step made of them
function movedOf(what, rows) {
  const changes = rows.flatMap((row) => row.texts.map((_, at) => changeOf(row, at)));
  const better = changes.filter((change) => change < 0).length;
  const most = Math.max(1e-9, ...changes.map(Math.abs).filter(Number.isFinite));
  const lines = rows.map((row) => element("p", {}, ...row.texts.map((text, at) => {
    const change = changeOf(row, at);
    const span = element("span", {
      title: `${fixed(bits(row.before[at]), 3)} → ${fixed(bits(row.after[at]), 3)} bits`, class: change < 0 ? "gained" : "lost",
    }, text.includes("\n") ? "⏎" + text : text || "▯");
    span.style.setProperty("--much", Math.min(1, Math.sqrt(Math.abs(change) / most)).toFixed(3));
    return span;
  })));
  return [
    element("p", { class: "note" }, `${what}: ${better} of ${changes.length} tokens got better (green), by up to ${digits(bits(most), 3)} bits`),
    element("div", { class: "tokens moved", tabIndex: 0 }, ...lines),
  ];
}
