"use strict";
// What a sparse autoencoder finds at a place: its measures, its features, and a switch for each.

const LISTED = 60, ASK_EVERY = 300;

function offerPlaces() {
  const chosen = $("feature-place").value;
  const places = about.runs[state.run].places.filter((place) => !/(pattern|logits)$/.test(place));
  $("feature-place").replaceChildren(...places.map((place) => element("option", {}, place)));
  const middle = `blocks.${Math.floor(about.runs[state.run].blocks / 2)}.output`;
  $("feature-place").value = places.includes(chosen) ? chosen : places.includes(middle) ? middle : places[0];
}

async function findFeatures() {
  $("stop-features").hidden = false;
  let isOver = false;
  const watch = setInterval(async () => {
    const { done, of } = await ask("progress").catch(() => ({}));
    if (of && !isOver) $("feature-status").textContent = `training the autoencoder: ${done} of ${of} steps`;
  }, ASK_EVERY);
  try {
    const found = await ask("features", {
      run: state.run, moment: state.moment, text: state.text, place: $("feature-place").value,
      multiple: Number($("feature-multiple").value), active: Number($("feature-active").value),
    });
    $("found").replaceChildren(measuresOf(found), listOf(found));
    isOver = true;
    $("feature-status").textContent = "";
    await showChosen();
  } catch (error) {
    isOver = true;
    $("feature-status").textContent = error.message;
  } finally {
    isOver = true;
    clearInterval(watch);
    $("stop-features").hidden = true;
  }
}

function measuresOf(found) {
  const rows = [
    ["numbers, features", `${found.width}, ${found.features}`],
    ["loss recovered", found.loss_recovered === null ? "–" : percent(found.loss_recovered)],
    ["variance explained", found.explained_variance === null ? "–" : percent(found.explained_variance)],
    ["active at a token", digits(found.active, 3)],
    ["never active", percent(found.dead)],
    ["bits a token: as it is", digits(bits(found.nats.plain))],
    ["with the features alone", digits(bits(found.nats.reconstructed))],
    ["with nothing there", digits(bits(found.nats.zero))],
    ["learned from, measured on", `${found.tokens}, ${found.held_out_tokens} tokens`],
  ];
  const body = rows.map(([name, value]) => element("tr", {}, element("td", {}, name), element("td", { class: "number" }, value)));
  return element("div", { class: "card" }, element("h3", {}, found.place), element("table", {}, element("tbody", {}, ...body)));
}

function listOf(found) {
  const alive = found.list.filter((one) => one.density > 0);
  const buttons = alive.slice(0, LISTED).map((one) => element("button", {
    type: "button", title: `active at ${percent(one.density)} of tokens, at most ${one.largest}`,
    onclick: () => showFeature(found.place, one.feature).catch(failed),
  }, `${one.feature}: ${percent(one.density)}`));
  const more = alive.length > LISTED ? ` (the first ${LISTED} of ${alive.length})` : "";
  return element("div", { class: "card" }, element("h3", {}, `Its features, by how often they are active${more}`), element("div", { class: "parts" }, ...buttons));
}

// those that are active at the chosen token
function featuresAt(layer) {
  const buttons = layer.top.map(([feature, value]) => element("button", {
    type: "button", title: `feature ${feature}: ${value}`, onclick: () => showFeature(layer.place, feature).catch(failed),
  }, `${feature}: ${Number(value.toPrecision(3))}`));
  return element("div", { class: "card" }, element("h3", {}, `${layer.place}: features`),
    element("p", { class: "note" }, `${layer.active} of ${layer.size} active; ${digits(layer.error, 3)} of its length ${digits(layer.length, 3)} is not explained`),
    element("div", { class: "parts" }, ...buttons));
}

async function showFeature(place, feature) {
  const found = await ask("feature", { run: state.run, moment: state.moment, place, feature });
  const now = state.changes.find((one) => one.kind === "feature" && one.place === place && one.feature === feature);
  const scale = element("input", {
    type: "number", step: "any", value: now ? now.factor : 1, "aria-label": `factor of feature ${feature} of ${place}`,
    onchange: (event) => scaleFeature(place, feature, event.target.value === "" ? 1 : event.target.valueAsNumber),
  });
  showTexts(`${place}, feature ${feature}: where it is most active `, scale, found);
}

function scaleFeature(place, feature, factor) {
  if (!Number.isFinite(factor)) return;
  state.changes = state.changes.filter((one) => !(one.kind === "feature" && one.place === place && one.feature === feature));
  if (factor !== 1) state.changes.push({ kind: "feature", place, feature, factor, at: null });
  lookAgain();
}
