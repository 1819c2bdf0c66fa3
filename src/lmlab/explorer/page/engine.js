"use strict";

// The server's answers (server.py), computed in the page: the weights are in the file, and nothing is asked for anywhere.
// It follows models/transformer.py and its layers, then look.py, changes.py, units.py and generate.py, function by function.
// What it cannot compute, single_file.py refuses before a file is made.
//
// A matrix has one row for each token. Its numbers are in single precision, as in Python; every sum is taken in double
// precision and in the same order however many rows there are, so what is read later never changes what was read before.

(() => {
  const LAST = -1, GUESSES = 8, UNITS = 12; // as in look.py
  const MOST_CHARACTERS = 200_000;
  const MOST_WINDOWS = 64, TEXTS = 6, AROUND = 24; // as in units.py
  const NEXT = 40; // as in generate.py
  const LONGEST = 16; // bytes of a piece, as in unigram.py
  const PATIENCE = 25; // milliseconds of work after which the page gets its turn
  const STRIPE = 32; // rows of a matrix product between two looks at the clock

  const file = JSON.parse(document.getElementById("file").textContent);

  // ------------------------------------------------------------------ giving way to the page

  let resumed = performance.now();

  // lets the page draw and listen where work has taken long; throws where nobody waits for it any more
  async function giveWay(signal) {
    stopIfAborted(signal);
    if (performance.now() - resumed < PATIENCE) return;
    await nextTask();
    resumed = performance.now();
    stopIfAborted(signal);
  }

  function stopIfAborted(signal) {
    if (signal?.aborted) throw new DOMException("stopped", "AbortError");
  }

  // a message, as timers are slowed down where one follows another or the page is hidden
  function nextTask() {
    return new Promise((resolve) => {
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => { port1.close(); resolve(); };
      port2.postMessage(null);
    });
  }

  // ------------------------------------------------------------------ the weights

  const opened = [];

  // a run, its weights unpacked when it is first asked for
  function runOf(number) {
    if (!file.runs[number]) throw new Error(`there is no run ${number}`);
    opened[number] ??= openedRun(file.runs[number], file.about.runs[number]);
    file.runs[number].weights = ""; // which would take as much memory again
    return opened[number];
  }

  function openedRun(packed, about) {
    const { inner, options } = about.model;
    const part = (key) => ({ name: inner[key].name, ...inner[key].options });
    const attention = part("attention");
    const heads = packed.heads;
    return {
      name: about.name, context: about.context, vocabularySize: about.vocabulary_size, depth: about.blocks,
      places: about.places, tables: about.tables, moments: about.moments,
      width: packed.width, size: packed.width / heads, heads, groups: attention.groups ?? heads,
      window: attention.window === undefined ? Infinity : Math.min(attention.window, about.context),
      scoreEpsilon: attention.qk_norm ? attention.epsilon : null,
      softCap: options.logit_soft_cap,
      embedding: part("embedding"), position: part("position"), feedForward: part("feed_forward"),
      normalisation: part("normalisation"), placement: part("placement").name, residual: part("residual").name,
      tensors: unpacked(packed),
      tokenizer: tokenizerOf(packed.tokenizer),
      told: packed.told, // answers that were made with the file
      turns: null, // cosines and sines of rotary positions
      latest: null, // the text that was asked about last, in tokens
    };
  }

  function unpacked({ weights, tensors, same }) {
    const bytes = fromBase64(weights);
    const found = {};
    for (const { name, shape, type, begin, end } of tensors) found[name] = { shape, data: READ[type](bytes.slice(begin, end).buffer) };
    for (const [name, other] of Object.entries(same)) found[name] = found[other];
    return found;
  }

  const READ = {
    float16: (buffer) => fromHalves(new Uint16Array(buffer)),
    float32: (buffer) => new Float32Array(buffer),
    int32: (buffer) => new Int32Array(buffer),
  };

  function fromBase64(text) {
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  }

  let halves = null; // the value of each of the 65,536 numbers of 16 bits

  function fromHalves(bits) {
    halves ??= Float32Array.from({ length: 65536 }, (_, half) => fromHalf(half));
    const values = new Float32Array(bits.length);
    for (let i = 0; i < bits.length; i++) values[i] = halves[bits[i]];
    return values;
  }

  // IEEE 754: a sign, five bits of exponent, ten of fraction
  function fromHalf(half) {
    const sign = half & 0x8000 ? -1 : 1, exponent = (half >> 10) & 31, fraction = half & 1023;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }

  // ------------------------------------------------------------------ tokenizers

  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  // bytes stand in the file as the characters of their numbers (Latin-1)
  function tokenizerOf(saved) {
    const texts = saved.bytes.map((piece) => decoder.decode(Uint8Array.from(piece, (one) => one.charCodeAt(0))));
    return { bos: saved.bos, texts, encode: ENCODERS[saved.name](saved), spells: saved.name === "character", sizes: saved.bytes.map((piece) => piece.length) };
  }

  // the text and the bytes that each id stands for; a character that several ids spell belongs to the last of these
  function piecesOf(run, text, ids) {
    const { texts, sizes, spells, encode } = run.tokenizer;
    if (!spells) return { texts: ids.map((id) => texts[id]), sizes: ids.map((id) => sizes[id]), ids };
    const pieces = [...text.toWellFormed()].flatMap((character) => [...Array(encode(character).length - 1).fill(""), character]);
    return { texts: pieces, sizes: pieces.map((piece) => (piece ? utf8(piece).length : 0)), ids };
  }

  const ENCODERS = {
    byte: () => (text) => [...text].flatMap(utf8),
    character(saved) {
      const ids = numbered(saved.characters);
      return (text) => charactersOf(text, saved, ids);
    },
    bpe(saved) {
      const ids = numbered(saved.bytes);
      return byPretokens(saved, (word) => merged(word, ids));
    },
    unigram(saved) {
      const ids = numbered(saved.bytes);
      return byPretokens(saved, (word) => likeliestPieces(word, ids, saved));
    },
    word(saved) {
      const ids = numbered(saved.bytes);
      return byPretokens(saved, (word) => (ids.has(word) ? [ids.get(word)] : [...word].map((byte) => ids.get(byte))));
    },
  };

  // what is text by its id; the BOS token, and an id that is no text on its own, stand as ""
  function numbered(pieces) {
    const ids = new Map(pieces.map((piece, id) => [piece, id]));
    ids.delete("");
    return ids;
  }

  // pretokens.py: pieces that no token crosses, each spelled once
  function byPretokens(saved, spell) {
    const pattern = new RegExp(saved.pattern, "gu"), known = new Map();
    return (text) => {
      const ids = [];
      for (const [pretoken] of text.replace(/[\ud800-\udfff]/gu, "\ufffd").matchAll(pattern)) {
        if (!known.has(pretoken)) known.set(pretoken, spell(String.fromCharCode(...[...pretoken].flatMap(utf8))));
        for (const id of known.get(pretoken)) ids.push(id);
      }
      return ids;
    };
  }

  // the bytes of a character; half surrogates too, which TextEncoder would replace
  function utf8(character) {
    const point = character.codePointAt(0);
    if (point < 0x80) return [point];
    if (point < 0x800) return [0xc0 | (point >> 6), 0x80 | (point & 63)];
    if (point < 0x10000) return [0xe0 | (point >> 12), 0x80 | ((point >> 6) & 63), 0x80 | (point & 63)];
    return [0xf0 | (point >> 18), 0x80 | ((point >> 12) & 63), 0x80 | ((point >> 6) & 63), 0x80 | (point & 63)];
  }

  // bpe.py, as its engine does it: of neighbours that together are a token, those with the lowest id become it first
  function merged(word, ids) {
    const pieces = [...word];
    while (pieces.length > 1) {
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < pieces.length; i++) {
        const id = ids.get(pieces[i] + pieces[i + 1]) ?? Infinity;
        if (id < best) [best, at] = [id, i];
      }
      if (at < 0) break;
      pieces.splice(at, 2, pieces[at] + pieces[at + 1]);
    }
    return pieces.map((piece) => ids.get(piece));
  }

  // unigram.py: the spelling with the highest sum of log probabilities (Viterbi)
  function likeliestPieces(word, ids, { scores }) {
    const best = [0], begins = [0];
    for (let end = 1; end <= word.length; end++) {
      [best[end], begins[end]] = [-Infinity, 0];
      for (let start = Math.max(0, end - LONGEST); start < end; start++) {
        const id = ids.get(word.slice(start, end));
        if (id !== undefined && best[start] + scores[id] > best[end]) [best[end], begins[end]] = [best[start] + scores[id], start];
      }
    }
    const found = [];
    for (let end = word.length; end > 0; end = begins[end]) found.unshift(ids.get(word.slice(begins[end], end)));
    return found;
  }

  // character.py: an unknown character is `unseen` and its code point in base unseen + 1
  function charactersOf(text, { unseen }, ids) {
    const found = [], base = unseen + 1;
    let digits = 1;
    while (base ** digits < 0x110000) digits++;
    for (const character of text) {
      const id = ids.get(character);
      found.push(id ?? unseen);
      if (id !== undefined) continue;
      for (let place = digits - 1; place >= 0; place--) {
        found.push(Math.floor(character.codePointAt(0) / base ** place) % base);
      }
    }
    return found;
  }

  const idsOf = (run, text) => [run.tokenizer.bos, ...run.tokenizer.encode(text)]; // those of a text that begins a document
  const shown = (run, ids) => ids.map((id) => run.tokenizer.texts[id]);

  // ------------------------------------------------------------------ matrices

  // a row has `parts` parts of `size` numbers: heads of an attention, otherwise single numbers; `first` is its first row's position
  function matrix(rows, parts, size = 1, first = 0) {
    return { rows, parts, size, first, columns: parts * size, data: new Float32Array(rows * parts * size) };
  }

  const rowOf = (x, row) => x.data.subarray(row * x.columns, (row + 1) * x.columns);

  function columns(x, begin, end) {
    if (begin === 0 && end === x.columns) return x;
    const part = matrix(x.rows, end - begin);
    for (let row = 0; row < x.rows; row++) part.data.set(rowOf(x, row).subarray(begin, end), row * part.columns);
    return part;
  }

  function beside(x, y) {
    if (!y.columns) return x;
    const both = matrix(x.rows, x.columns + y.columns);
    for (let row = 0; row < x.rows; row++) {
      both.data.set(rowOf(x, row), row * both.columns);
      both.data.set(rowOf(y, row), row * both.columns + x.columns);
    }
    return both;
  }

  function rowsFrom(x, first) {
    return first === 0 ? x : { ...x, rows: x.rows - first, first: x.first + first, data: x.data.subarray(first * x.columns) };
  }

  // number by number of matrices of one shape
  function combined(x, y, f) {
    const made = matrix(x.rows, x.parts, x.size, x.first);
    for (let i = 0; i < made.data.length; i++) made.data[i] = f(x.data[i], y.data[i]);
    return made;
  }

  const sum = (x, y) => combined(x, y, (a, b) => a + b);

  // x Wᵀ
  async function linear(x, weight, signal) {
    const product = matrix(x.rows, weight.shape[0], 1, x.first);
    for (let row = 0; row < x.rows; row += STRIPE) {
      multiply(x.data, weight.data, product.data, row, Math.min(row + STRIPE, x.rows), x.columns, product.columns);
      await giveWay(signal);
    }
    return product;
  }

  // four rows by four columns at a time, as each number that is read then serves four products; what lies beyond
  // the edge is the last row or column once more, which gives the same number again
  function multiply(x, w, product, begin, end, inner, outer) {
    for (let column = 0; column < outer; column += 4) {
      const j0 = column, j1 = Math.min(column + 1, outer - 1), j2 = Math.min(column + 2, outer - 1), j3 = Math.min(column + 3, outer - 1);
      const w0 = j0 * inner, w1 = j1 * inner, w2 = j2 * inner, w3 = j3 * inner;
      for (let row = begin; row < end; row += 4) {
        const i0 = row, i1 = Math.min(row + 1, end - 1), i2 = Math.min(row + 2, end - 1), i3 = Math.min(row + 3, end - 1);
        const x0 = i0 * inner, x1 = i1 * inner, x2 = i2 * inner, x3 = i3 * inner;
        let s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;
        let s20 = 0, s21 = 0, s22 = 0, s23 = 0, s30 = 0, s31 = 0, s32 = 0, s33 = 0;
        for (let k = 0; k < inner; k++) {
          const a = x[x0 + k], b = x[x1 + k], c = x[x2 + k], d = x[x3 + k];
          const p = w[w0 + k], q = w[w1 + k], r = w[w2 + k], s = w[w3 + k];
          s00 += a * p; s01 += a * q; s02 += a * r; s03 += a * s;
          s10 += b * p; s11 += b * q; s12 += b * r; s13 += b * s;
          s20 += c * p; s21 += c * q; s22 += c * r; s23 += c * s;
          s30 += d * p; s31 += d * q; s32 += d * r; s33 += d * s;
        }
        const y0 = i0 * outer, y1 = i1 * outer, y2 = i2 * outer, y3 = i3 * outer;
        product[y0 + j0] = s00; product[y0 + j1] = s01; product[y0 + j2] = s02; product[y0 + j3] = s03;
        product[y1 + j0] = s10; product[y1 + j1] = s11; product[y1 + j2] = s12; product[y1 + j3] = s13;
        product[y2 + j0] = s20; product[y2 + j1] = s21; product[y2 + j2] = s22; product[y2 + j3] = s23;
        product[y3 + j0] = s30; product[y3 + j1] = s31; product[y3 + j2] = s32; product[y3 + j3] = s33;
      }
    }
  }

  function dot(x, i, y, j, length) {
    let even = 0, odd = 0;
    for (let k = 0; k < length; k += 2) { // heads are of an even width
      even += x[i + k] * y[j + k];
      odd += x[i + k + 1] * y[j + k + 1];
    }
    return even + odd;
  }

  // ------------------------------------------------------------------ places (places.py)

  // what flows through the places of a model in one pass: changed by `actions`, kept where `keeps` says so
  class Flow {
    constructor({ actions = [], keeps = () => false, until = null, skipped = 0, signal } = {}) {
      Object.assign(this, { actions, keeps, until, skipped, signal });
      this.states = new Map();
    }

    // what flows on; several names where it is one place
    pass(state, ...names) {
      const actions = this.actions.filter((action) => names.includes(action.place));
      const onwards = actions.length ? { ...state, data: state.data.slice() } : state;
      for (const action of actions) action.change(onwards);
      for (const name of names) if (this.keeps(name)) this.states.set(name, onwards);
      return onwards;
    }

    get isDone() { return this.states.has(this.until); }
  }

  const isStream = (name) => /(^|\.)(input|output|embedding|after_[^.]*)$/.test(name);

  // ------------------------------------------------------------------ the model (models/transformer.py)

  // the logits of each position from `flow.skipped` on; null where the place is passed that was to be the last
  async function forward(run, ids, flow) {
    let stream = await embedded(run, ids, flow);
    for (let number = 0; number < run.depth; number++) {
      stream = await block(run, number, stream, flow);
      if (flow.isDone) return null;
    }
    return flow.pass(await head(run, rowsFrom(stream, flow.skipped), flow.signal), "logits");
  }

  async function head(run, stream, signal) {
    const x = { ...columns(stream, 0, run.width), first: stream.first };
    const logits = await linear(normalised(run, x, "final_norm."), run.tensors["readout.weight"], signal);
    const cap = run.softCap;
    if (cap) for (let i = 0; i < logits.data.length; i++) logits.data[i] = cap * Math.tanh(logits.data[i] / cap);
    return logits;
  }

  // behind its own numbers, the stream of a value residual carries the first block's values
  async function block(run, number, stream, flow) {
    const at = `blocks.${number}.`;
    const names = number === 0 ? ["embedding", `${at}input`] : [`${at}input`];
    stream = flow.pass(stream, ...names);
    let first = columns(stream, run.width, stream.columns);
    const mixed = (values) => {
      if (run.residual !== "value") return values;
      if (number === 0) return (first = values);
      const own = run.tensors[`${at}attention_residual.own`].data[0], other = run.tensors[`${at}attention_residual.first`].data[0];
      return combined(values, first, (a, b) => own * a + other * b);
    };
    let x = columns(stream, 0, run.width);
    x = await added(run, `${at}attention_residual.placement.`, x, (y) => attention(run, `${at}attention.`, y, flow, mixed));
    stream = flow.pass(beside(x, first), `${at}after_attention`);
    [x, first] = [columns(stream, 0, run.width), columns(stream, run.width, stream.columns)];
    x = await added(run, `${at}feed_forward_residual.placement.`, x, (y) => feedForward(run, `${at}feed_forward.`, y, flow));
    return flow.pass(beside(x, first), `${at}output`);
  }

  // x + layer(x), normalised where the placement says
  async function added(run, at, x, layer) {
    if (run.placement === "post") return normalised(run, sum(x, await layer(x)), `${at}norm.`);
    if (run.placement === "pre") return sum(x, await layer(normalised(run, x, `${at}norm.`)));
    return sum(x, normalised(run, await layer(normalised(run, x, `${at}before.`)), `${at}behind.`));
  }

  // ------------------------------------------------------------------ layers/embedding, layers/position

  async function embedded(run, ids, flow) {
    let x = rowsOf(run.tensors["embedding.tokens.weight"], ids);
    if (run.embedding.name === "n_gram") x = sum(x, await nGrams(run, ids, flow));
    if (run.position.name === "learned") {
      const table = run.tensors["position.table.weight"];
      x = sum(x, rowsOf(table, ids.map((_, position) => Math.min(position, table.shape[0] - 1))));
    }
    return x;
  }

  function rowsOf(table, numbers) {
    const width = table.shape[1], found = matrix(numbers.length, width);
    numbers.forEach((number, row) => found.data.set(table.data.subarray(number * width, (number + 1) * width), row * width));
    return found;
  }

  // the vectors of the n-grams that end at each token: added up, or side by side and widened
  async function nGrams(run, ids, flow) {
    const widen = run.tensors["embedding.widen.weight"];
    let all = null;
    for (let order = 2; order <= run.embedding.longest; order++) {
      const name = `embedding.tables.${order - 2}`;
      const rows = rowsOf(run.tensors[`${name}.weight`], ids.map((_, position) => nGramRow(run, ids, position, order)));
      const vectors = flow.pass(rows, name);
      all = all === null ? vectors : widen ? beside(all, vectors) : sum(all, vectors);
    }
    return widen ? linear(all, widen, flow.signal) : all;
  }

  // where each n-gram of the order has a row its tokens are the number's digits; otherwise a hash
  function nGramRow(run, ids, position, order) {
    const nothing = run.vocabularySize, { buckets } = run.embedding;
    const idAt = (back) => (back > position ? nothing : ids[position - back]);
    const keys = run.tensors["embedding.keys"].data;
    const isExact = (nothing + 1) ** order <= buckets;
    let row = 0;
    for (let back = order - 1; back >= 0; back--) {
      if (isExact) {
        row = row * (nothing + 1) + idAt(back);
      } else {
        row = Math.imul(row ^ keys[idAt(back)], 0x9e3779b1) >>> 0;
        row = (row ^ (row >>> 15)) >>> 0;
      }
    }
    return isExact ? row : row % buckets;
  }

  // rotary.py, in place, the first `heads` heads of each row
  function rotate(run, x, heads) {
    if (run.position.name !== "rotary") return;
    const pairs = run.size / 2;
    if (!run.turns || run.turns.rows < x.rows) run.turns = turnsOf(Math.max(x.rows, run.context), pairs, run.position.base);
    const { cosines, sines } = run.turns;
    for (let row = 0; row < x.rows; row++) {
      for (let head = 0; head < heads; head++) {
        const start = row * x.columns + head * run.size;
        for (let pair = 0; pair < pairs; pair++) {
          const cosine = cosines[row * pairs + pair], sine = sines[row * pairs + pair];
          const one = x.data[start + pair], other = x.data[start + pairs + pair];
          x.data[start + pair] = one * cosine - other * sine;
          x.data[start + pairs + pair] = other * cosine + one * sine;
        }
      }
    }
  }

  function turnsOf(rows, pairs, base) {
    const cosines = new Float32Array(rows * pairs), sines = new Float32Array(rows * pairs);
    for (let i = 0; i < rows * pairs; i++) {
      const angle = Math.floor(i / pairs) * base ** (-(i % pairs) / pairs);
      [cosines[i], sines[i]] = [Math.cos(angle), Math.sin(angle)];
    }
    return { rows, cosines, sines };
  }

  // ------------------------------------------------------------------ layers/attention

  // queries and keys of H and G heads, then values of G: multi-head attention is the one with as many groups as heads
  async function attention(run, at, x, flow, mixed) {
    const { heads, groups, size } = run;
    const projected = await linear(x, run.tensors[`${at}queries_keys_values.weight`], flow.signal);
    if (run.scoreEpsilon !== null) normaliseHeads(projected, heads + groups, size, run.scoreEpsilon);
    rotate(run, projected, heads + groups);
    const values = mixed(columns(projected, (heads + groups) * size, projected.columns));
    const pattern = flow.pass(await weights(run, projected, flow.signal), `${at}pattern`);
    const read = flow.pass(await averages(run, pattern, values, flow.signal), `${at}head_outputs`);
    return linear(read, run.tensors[`${at}out.weight`], flow.signal);
  }

  function normaliseHeads(x, heads, size, epsilon) {
    for (let row = 0; row < x.rows; row++) {
      for (let head = 0; head < heads; head++) {
        const start = row * x.columns + head * size;
        const scale = 1 / Math.sqrt(dot(x.data, start, x.data, start, size) / size + epsilon);
        for (let i = start; i < start + size; i++) x.data[i] *= scale;
      }
    }
  }

  // how much each head reads at each position, heads x rows x rows; each row adds up to 1
  async function weights(run, x, signal) {
    const { heads, groups, size } = run, { rows } = x;
    const pattern = { heads, rows, first: 0, data: new Float32Array(heads * rows * rows) };
    for (let head = 0; head < heads; head++) {
      const slope = run.position.name === "alibi" ? 2 ** ((-8 / heads) * (head + 1)) : 0;
      const key = (heads + Math.floor(head / (heads / groups))) * size;
      for (let row = 0; row < rows; row++) {
        const scores = pattern.data.subarray((head * rows + row) * rows, (head * rows + row + 1) * rows);
        const begin = Math.max(0, row - run.window + 1);
        for (let other = begin; other <= row; other++) {
          const score = dot(x.data, row * x.columns + head * size, x.data, other * x.columns + key, size);
          scores[other] = score / Math.sqrt(size) - slope * (row - other);
        }
        softmax(scores, begin, row + 1);
      }
      await giveWay(signal);
    }
    return pattern;
  }

  function softmax(values, begin, end) {
    let highest = -Infinity, total = 0;
    for (let i = begin; i < end; i++) highest = Math.max(highest, values[i]);
    for (let i = begin; i < end; i++) total += values[i] = Math.exp(values[i] - highest);
    for (let i = begin; i < end; i++) values[i] /= total;
  }

  async function averages(run, pattern, values, signal) {
    const { heads, groups, size } = run, { rows } = values;
    const read = matrix(rows, heads, size), total = new Float64Array(size);
    for (let head = 0; head < heads; head++) {
      const group = Math.floor(head / (heads / groups)) * size;
      for (let row = 0; row < rows; row++) {
        total.fill(0);
        for (let other = Math.max(0, row - run.window + 1); other <= row; other++) {
          const weight = pattern.data[(head * rows + row) * rows + other], from = other * values.columns + group;
          for (let i = 0; i < size; i++) total[i] += weight * values.data[from + i];
        }
        read.data.set(total, row * read.columns + head * size);
      }
      await giveWay(signal);
    }
    return read;
  }

  // ------------------------------------------------------------------ layers/feed_forward, layers/normalisation

  async function feedForward(run, at, x, flow) {
    const isGated = run.feedForward.name === "swiglu";
    const hidden = await linear(x, run.tensors[`${at}${isGated ? "gate_up" : "up"}.weight`], flow.signal);
    const units = flow.pass(isGated ? gated(hidden) : applied(hidden, ACTIVATIONS[run.feedForward.name]), `${at}units`);
    return linear(units, run.tensors[`${at}out.weight`], flow.signal);
  }

  // what is rounded to single precision on the way, as in Python, decides which units are exactly 0
  const ACTIVATIONS = {
    relu_squared: (x) => x * Math.max(x, 0),
    gelu: (x) => (x / 2) * (1 + Math.fround(2 * normalShare(x) - 1)),
  };
  const silu = (x) => x / Math.fround(1 + Math.exp(-x));

  function applied(x, f) {
    const made = matrix(x.rows, x.columns);
    for (let i = 0; i < made.data.length; i++) made.data[i] = f(x.data[i]);
    return made;
  }

  function gated(hidden) {
    const size = hidden.columns / 2;
    return combined(columns(hidden, 0, size), columns(hidden, size, 2 * size), (gate, up) => silu(gate) * up);
  }

  // P(a standard normal number < x), by its series (Marsaglia 2004); beyond 8 it differs from 0 or 1 by less than 1e-15
  function normalShare(x) {
    if (Math.abs(x) > 8 || Number.isNaN(x)) return x > 0 ? 1 : x < 0 ? 0 : NaN;
    let term = x, total = x;
    for (let odd = 3; Math.abs(term) > 1e-17 * Math.abs(total); odd += 2) total += term *= (x * x) / odd;
    return 0.5 + total * Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);
  }

  function normalised(run, x, at) {
    const { name, epsilon } = run.normalisation;
    if (name === "identity") return x;
    const made = matrix(x.rows, x.columns, 1, x.first);
    const [gain, bias, slope] = ["gain", "bias", "slope"].map((one) => run.tensors[at + one]?.data);
    for (let row = 0; row < x.rows; row++) NORMALISED[name](rowOf(x, row), rowOf(made, row), { gain, bias, slope, epsilon });
    return made;
  }

  const NORMALISED = {
    rms_norm(x, y, { gain, epsilon }) {
      const scale = 1 / Math.sqrt(meanSquare(x, 0) + epsilon);
      for (let i = 0; i < x.length; i++) y[i] = x[i] * scale * gain[i];
    },
    layer_norm(x, y, { gain, bias, epsilon }) {
      const mean = sumOf(x) / x.length;
      const scale = 1 / Math.sqrt(meanSquare(x, mean) + epsilon);
      for (let i = 0; i < x.length; i++) y[i] = (x[i] - mean) * scale * gain[i] + bias[i];
    },
    dynamic_tanh(x, y, { gain, bias, slope }) {
      for (let i = 0; i < x.length; i++) y[i] = Math.tanh(slope[0] * x[i]) * gain[i] + bias[i];
    },
  };

  function sumOf(values) {
    let total = 0;
    for (let i = 0; i < values.length; i++) total += values[i];
    return total;
  }

  function meanSquare(x, mean) {
    let total = 0;
    for (let i = 0; i < x.length; i++) total += (x[i] - mean) ** 2;
    return total / x.length;
  }

  // ------------------------------------------------------------------ changes (changes.py)

  function checkChange(change, number) {
    const where = `changes.${number}.${change.kind}.`;
    const big = { least: -1e6, most: 1e6 }, whole = { whole: true, least: 0 };
    if (!["scale", "patch", "add", "pin"].includes(change.kind)) throw new Error(`changes.${number}: there is no kind '${change.kind}'`);
    const amount = (key, range) => numberOf(change, key, range, where), words = (key) => wordsOf(change, key, where);
    if (change.kind === "pin") return { kind: "pin", at: amount("at", whole), token: amount("token", whole) };
    const known = { kind: change.kind, place: words("place") };
    for (const key of ["unit", "at"]) known[key] = (change[key] ?? null) === null ? null : amount(key, whole);
    if (change.kind === "scale") return { ...known, factor: amount("factor", big) };
    if (change.kind === "patch") return { ...known, text: words("text"), of: amount("of", whole) };
    return { ...known, plus: words("plus"), minus: words("minus"), strength: amount("strength", big) };
  }

  // the ids that are read, BOS first, with pinned tokens in place
  function pinned(run, changes, ids) {
    const read = [...ids];
    for (const { at, token } of changes.filter(isPin)) {
      if (token >= run.vocabularySize) throw new Error(`there is no token ${token}; the last is ${run.vocabularySize - 1}`);
      if (at + 1 >= ids.length) throw new Error(`the text has no token ${at} to be pinned`);
      read[at + 1] = token;
    }
    return read;
  }

  const isPin = (change) => change.kind === "pin";

  // what the changes do where they act, in the order given; a pass's first position predicts the token `begin`
  async function actionsOf(run, changes, begin, signal) {
    const actions = [];
    for (const change of changes) if (!isPin(change)) actions.push(acting(change, begin, await functionOf(run, change, signal)));
    return actions;
  }

  // of a number that flows through a place, and its number in the row or part that is changed, what flows on
  async function functionOf(run, change, signal) {
    const isTable = run.tables.includes(change.place);
    if (change.kind === "scale") {
      if (!isTable) checkPlace(run, change.place);
      return (x) => change.factor * x;
    }
    if (isTable || change.place.endsWith(".pattern")) {
      throw new Error(`${change.place} can be scaled, not patched; take what it gives instead`);
    }
    if (change.kind === "patch") {
      const other = await seen(run, change, change.text, change.of, signal);
      return (x, i) => other[i];
    }
    const plus = await seen(run, change, change.plus, null, signal), minus = await seen(run, change, change.minus, null, signal);
    return (x, i) => x + change.strength * (plus[i] - minus[i]);
  }

  function checkPlace(run, place) {
    if (!run.places.includes(place)) throw new Error(`no place ${place} in this model; lmlab.model.places.names(model) lists them all`);
  }

  // what flows through a place where a token of a text is predicted; after its last where `of` is null
  async function seen(run, { place, unit }, text, of, signal) {
    checkPlace(run, place);
    const ids = idsOf(run, text), position = of ?? ids.length - 1;
    if (position >= ids.length) {
      const begin = [...text].slice(0, 40).join("");
      throw new Error(`the text '${begin}' has no token ${position}; it has ${ids.length - 1}`);
    }
    const flow = new Flow({ keeps: (name) => name === place, until: place, signal });
    await forward(run, ids.slice(Math.max(0, position + 1 - run.context), position + 1), flow);
    const state = flow.states.get(place);
    checkPart(place, unit, state.parts);
    const [[start, length]] = stretches(state, unit, state.rows - 1);
    return state.data.slice(start, start + length);
  }

  function checkPart(place, unit, parts) {
    if (unit !== null && unit >= parts) throw new Error(`${place} has no part ${unit}; the last is ${parts - 1}`);
  }

  function acting({ place, unit, at }, begin, f) {
    const change = (state) => {
      checkPart(place, unit, state.heads ?? state.parts);
      const row = at === null ? null : at - begin - state.first;
      if (row !== null && (row < 0 || row >= state.rows)) return;
      for (const [start, length] of stretches(state, unit, row)) {
        for (let i = 0; i < length; i++) state.data[start + i] = f(state.data[start + i], i);
      }
    };
    return { place, change };
  }

  // where the numbers of a part stand, at one row or at all: [begin, length] of each stretch
  function stretches(state, unit, row) {
    const { rows, heads } = state;
    const chosenRows = row === null ? [...Array(rows).keys()] : [row];
    if (heads) { // weights of attention
      const chosenHeads = unit === null ? [...Array(heads).keys()] : [unit];
      return chosenHeads.flatMap((head) => chosenRows.map((one) => [(head * rows + one) * rows, rows]));
    }
    if (unit === null) return chosenRows.map((one) => [one * state.columns, state.columns]);
    return chosenRows.map((one) => [one * state.columns + unit * state.size, state.size]);
  }

  // ------------------------------------------------------------------ a text, window by window (look.py)

  function textOf(run, text) {
    if (run.latest?.text === text) return run.latest;
    let characters = 0;
    for (const _ of text) characters++;
    if (characters > MOST_CHARACTERS) {
      throw new Error(`the text has ${counted(characters)} characters; at most ${counted(MOST_CHARACTERS)} are looked at`);
    }
    const ids = idsOf(run, text), length = ids.length - 1;
    run.latest = {
      text, ids, width: Math.min(run.context, length),
      windows: length ? windows(length, run.context, Math.max(1, Math.floor(run.context / 2))) : [],
    };
    return run.latest;
  }

  const counted = (number) => number.toLocaleString("en");

  // each of the targets is scored in the first window that holds it
  function windows(length, width, stride) {
    const found = [];
    let scored = 0;
    for (let start = 0; start < length && scored < length; start += stride) {
      const begin = Math.max(0, Math.min(start, length - width));
      found.push({ start: begin, unscored: scored });
      scored = Math.min(length, begin + width);
    }
    return found;
  }

  // what the model computes in a pass with the changes; without any, as it is
  async function pass(run, ids, begin, changes, how) {
    const actions = await actionsOf(run, changes, begin, how.signal);
    const flow = new Flow({ ...how, actions });
    return { logits: await forward(run, ids, flow), states: flow.states };
  }

  async function window({ run, text, changes }, { window: number }, signal) {
    const whole = textOf(run, text);
    const answer = { count: whole.windows.length };
    if (number === 0) Object.assign(answer, piecesOf(run, text, whole.ids.slice(1)));
    if (!whole.windows.length) return answer;
    if (number >= whole.windows.length) throw new Error(`the text is read in ${whole.windows.length} windows; there is no ${number}`);
    const { start, unscored } = whole.windows[number], end = start + whole.width;
    const targets = whole.ids.slice(unscored + 1, end + 1);
    const how = { keeps: isStream, skipped: unscored - start, signal };
    const plain = await pass(run, whole.ids.slice(start, end), start, [], how);
    answer.first = unscored;
    if (plain.logits.data.some(Number.isNaN)) throw new Error(`${run.name} gives no numbers at this moment (NaN): its training diverged; choose an earlier moment or another run`);
    answer.plain = await told(run, plain, targets, how);
    if (!changes.length) return answer;
    const changed = await pass(run, pinned(run, changes, whole.ids).slice(start, end), start, changes, how);
    if (changed.logits.data.some(Number.isNaN)) throw new Error("with these changes the model gives no numbers (NaN); take one back");
    answer.changed = await told(run, changed, targets, how);
    answer.direct = await direct(run, plain, changed, changes, targets, how);
    return answer;
  }

  // of each position: nats, rank of what came, likeliest tokens, and the same behind each block (logit lens)
  async function told(run, { logits, states }, targets, { skipped, signal }) {
    const found = { nats: [], rank: [], guesses: [], lens: [] };
    for (const [row, target] of targets.entries()) {
      const values = rowOf(logits, row), total = logSum(values);
      found.nats.push(rounded(total - values[target]));
      found.rank.push(values.reduce((higher, value) => higher + (value > values[target]), 0));
      const likeliest = largest(values, GUESSES);
      found.guesses.push(likeliest.map((id) => [run.tokenizer.texts[id], id, rounded(Math.exp(values[id] - total))]));
      await giveWay(signal);
    }
    for (let number = 0; number < run.depth; number++) {
      const behind = await head(run, rowsFrom(states.get(`blocks.${number}.output`), skipped), signal);
      const rows = targets.map((target, row) => lensRow(rowOf(behind, row), target));
      const ids = rows.map((row) => row.id);
      found.lens.push({ texts: shown(run, ids), ids, p: rows.map((row) => row.p), nats: rows.map((row) => row.nats) });
      await giveWay(signal);
    }
    return found;
  }

  function lensRow(values, target) {
    const total = logSum(values), [id] = largest(values, 1);
    return { id, p: rounded(Math.exp(values[id] - total)), nats: rounded(total - values[target]) };
  }

  const rounded = (value) => Number(value.toPrecision(6)); // what a page shows

  function logSum(values) {
    let highest = -Infinity, total = 0;
    for (let i = 0; i < values.length; i++) highest = Math.max(highest, values[i]);
    for (let i = 0; i < values.length; i++) total += Math.exp(values[i] - highest);
    return highest + Math.log(total);
  }

  // the numbers of the largest values, the largest first; of equal ones the earlier
  function largest(values, count) {
    const found = [];
    for (let i = 0; i < values.length; i++) {
      if (found.length === count && !(values[i] > values[found[count - 1]])) continue;
      let place = found.length;
      while (place > 0 && values[i] > values[found[place - 1]]) place--;
      found.splice(place, 0, i);
      if (found.length > count) found.pop();
    }
    return found;
  }

  // evaluation/effects.py: the nats of each token where later blocks add what they added before; or why not
  async function direct(run, plain, changed, changes, targets, { skipped, signal }) {
    const why_not = whyNotDirect(run, changes);
    if (why_not) return { why_not };
    const behind = Math.max(...changes.map((change) => run.places.indexOf(change.place)));
    const stream = run.places.slice(behind).find(isStream);
    const gained = combined(changed.states.get(stream), plain.states.get(stream), (a, b) => a - b);
    const last = sum(plain.states.get(`blocks.${run.depth - 1}.output`), gained);
    const logits = await head(run, rowsFrom(last, skipped), signal);
    return { nats: targets.map((target, row) => rounded(logSum(rowOf(logits, row)) - rowOf(logits, row)[target])) };
  }

  function whyNotDirect(run, changes) {
    if (changes.some(isPin)) return "a pinned token has no direct effect: it changes what is read";
    const places = changes.map((change) => change.place);
    for (const place of places) {
      if (run.tables.includes(place)) return "a table of n-grams is no place in the stream";
    }
    if (run.residual !== "plain") {
      return "direct effects need a model whose blocks add to one residual stream and that ends in an output head; this one has none";
    }
    const blocks = new Set(places.map((place) => (place === "embedding" ? "0" : place.split(".")[1] ?? place)));
    if (blocks.size === 1 && !blocks.has("logits")) return null;
    return `direct effects are those of places in one block, not of ${places.join(", ")}`;
  }

  // ------------------------------------------------------------------ what was computed at a token (look.py)

  async function token({ run, text, changes }, { token: at }, signal) {
    const whole = textOf(run, text);
    const found = whole.windows.find(({ start, unscored }) => unscored <= at && at < start + whole.width);
    if (!found) throw new Error(`the text has no token ${at}; it has ${whole.ids.length - 1}`);
    const begin = found.start;
    const ids = pinned(run, changes, whole.ids).slice(begin, at + 1);
    const { states } = await pass(run, ids, begin, changes, { keeps: () => true, skipped: ids.length - 1, signal });
    const answer = { begin, heads: [], layers: [] };
    for (const [place, state] of states) {
      if (place === "logits" || run.tables.includes(place)) continue;
      if (state.heads) answer.heads.push(...headsOf(place, state));
      else answer.layers.push(layerOf(place, state));
    }
    for (const table of run.tables) answer.layers.push(layerOf(table, states.get(table)));
    return { ...answer, features: [] }; // autoencoders are trained in the project alone
  }

  function headsOf(place, { heads, rows, data }) {
    return [...Array(heads).keys()].map((head) => {
      const begin = (head * rows + rows - 1) * rows;
      return { place, head, weights: Array.from(data.subarray(begin, begin + rows), rounded) };
    });
  }

  // a layer at the last position: its length, and its most active parts
  function layerOf(place, state) {
    const byPart = partsOf(state, state.rows - 1);
    const top = largest(byPart.map(Math.abs), UNITS);
    return {
      place,
      size: byPart.length,
      length: rounded(lengthOf(byPart)),
      active: byPart.filter((value) => value !== 0).length,
      top: top.map((part) => [part, rounded(byPart[part])]),
    };
  }

  // each number of a row, or the length of each of its parts
  function partsOf({ data, parts, size, columns: width }, row) {
    return Array.from({ length: parts }, (_, part) => {
      const begin = row * width + part * size;
      return size === 1 ? data[begin] : lengthOf(data.subarray(begin, begin + size));
    });
  }

  const lengthOf = (values) => Math.sqrt(meanSquare(values, 0) * values.length);

  // ------------------------------------------------------------------ on what text a part is most active (units.py)

  async function unit({ run, text }, { place, unit: part }, signal) {
    if (place.endsWith(".pattern")) throw new Error(`${place}: attention weights are no activation; ask for head_outputs`);
    const ids = idsOf(run, text || file.about.held_out.join("\n")).slice(0, MOST_WINDOWS * run.context + 1);
    if (ids.length < 2) throw new Error("there is no text to look for it in");
    checkPlace(run, place);
    const width = Math.min(run.context, ids.length - 1);
    const found = new Map();
    for (const { start } of windows(ids.length - 1, width, width)) {
      const flow = new Flow({ keeps: (name) => name === place, until: place, signal });
      await forward(run, ids.slice(start, start + width), flow);
      const state = flow.states.get(place);
      if (part >= state.parts) throw new Error(`${place} has no part ${part}`);
      const values = Array.from({ length: width }, (_, row) => partsOf(state, row)[part]);
      const [position] = largest(values.map(Math.abs), 1);
      found.set(start + position, values[position]);
    }
    const strongest = [...found].sort(([, one], [, other]) => Math.abs(other) - Math.abs(one)).slice(0, TEXTS);
    const texts = strongest.map(([at, value]) => ({
      value: rounded(value),
      before: shown(run, ids.slice(Math.max(1, at + 1 - AROUND), at + 1)),
      next: run.tokenizer.texts[ids[at + 1]],
    }));
    return { texts };
  }

  // ------------------------------------------------------------------ how a text goes on (generate.py, truncation.py)

  async function next({ run, text, changes }, { temperature, top_k, top_p, min_p, seed }, signal) {
    const ids = idsOf(run, text), begin = Math.max(0, ids.length - run.context);
    const read = pinned(run, changes, ids).slice(begin);
    const { logits } = await pass(run, read, begin, changes, { skipped: read.length - 1, signal });
    if (logits.data.some(Number.isNaN)) throw new Error("the model's logits are NaN there");
    const plain = probabilities(logits.data, 1);
    const [likeliest] = largest(plain, 1);
    const heated = temperature > 0 ? probabilities(logits.data, temperature) : plain.map((_, id) => Number(id === likeliest));
    const least = leastKept(heated, top_k, top_p, min_p);
    const share = sumOf(heated.filter((p) => p >= least));
    const cut = heated.map((p) => (p >= least ? p / share : 0));
    const drawn = draw(cut, seed);
    const order = largest(plain, NEXT);
    if (!order.includes(drawn)) order.push(drawn);
    return {
      tokens: order.map((id) => ({
        id, text: run.tokenizer.texts[id], ends: id === run.tokenizer.bos,
        plain: rounded(plain[id]), heated: rounded(heated[id]), p: rounded(cut[id]),
      })),
      kept: heated.filter((p) => p >= least && p > 0).length,
      of: plain.length,
      cut_off: rounded(sumOf(heated.filter((p) => !(p >= least && p > 0)))),
      drawn,
    };
  }

  // p(t) ~ exp(logit(t) / temperature)
  function probabilities(logits, temperature) {
    const highest = logits.reduce((most, value) => Math.max(most, value), -Infinity);
    const shares = Array.from(logits, (logit) => Math.exp((logit - highest) / temperature));
    const whole = sumOf(shares);
    return shares.map((share) => share / whole);
  }

  // the lowest probability that may be drawn
  function leastKept(probabilities, topK, topP, minP) {
    const byRank = [...probabilities].sort((one, other) => other - one);
    let least = byRank[0] * minP;
    if (topK) least = Math.max(least, byRank[Math.min(topK, byRank.length) - 1]);
    if (topP < 1) {
      let count = 0, likelier = 0; // what the likelier ones have
      for (const p of byRank) {
        if (likelier + p - p < topP) count++; // rounded as Python rounds it
        likelier += p;
      }
      least = Math.max(least, byRank[Math.max(count, 1) - 1]);
    }
    return Math.min(least, byRank[0]);
  }

  // by a seed, but not the token that torch draws by it: that has a generator of its own
  function draw(probabilities, seed) {
    let left = uniform(seed), last = -1;
    for (const [id, p] of probabilities.entries()) {
      if (p > 0) last = id;
      left -= p;
      if (left < 0 && p > 0) return id;
    }
    return last; // the shares added up to less than the number drawn, by rounding
  }

  // a number from [0, 1): the seed's two halves, mixed as in MurmurHash3
  function uniform(seed) {
    const bits = mix(mix(seed % 2 ** 32) ^ Math.floor(seed / 2 ** 32));
    return (bits + mix(bits ^ 0x9e3779b9) / 2 ** 32) / 2 ** 32;
  }

  function mix(word) {
    word = Math.imul(word ^ (word >>> 16), 0x85ebca6b);
    word = Math.imul(word ^ (word >>> 13), 0xc2b2ae35);
    return (word ^ (word >>> 16)) >>> 0;
  }

  // ------------------------------------------------------------------ what may be asked (server.py)

  function numberOf(body, key, { least = -Infinity, above = -Infinity, most = Infinity, whole = false, otherwise }, where = "") {
    const value = body[key] ?? otherwise;
    const wrong = (words) => new Error(`${where}${key}: Input should be ${words}`);
    if (typeof value !== "number" || !Number.isFinite(value)) throw wrong(whole ? "a valid integer" : "a valid number");
    if (whole && !Number.isInteger(value)) throw wrong("a valid integer, got a number with a fractional part");
    if (value < least) throw wrong(`greater than or equal to ${least}`);
    if (value <= above) throw wrong(`greater than ${above}`);
    if (value > most) throw wrong(`less than or equal to ${most}`);
    return value;
  }

  function wordsOf(body, key, where = "", otherwise) {
    const value = body[key] ?? otherwise;
    if (typeof value !== "string") throw new Error(`${where}${key}: Input should be a valid string`);
    return value;
  }

  const WHOLE = { whole: true, least: 0 };
  const ANSWERS = {
    window: (asked, body, signal) => window(asked, { window: numberOf(body, "window", { ...WHOLE, otherwise: 0 }) }, signal),
    token: (asked, body, signal) => token(asked, { token: numberOf(body, "token", WHOLE) }, signal),
    unit: (asked, body, signal) => unit(asked, { place: wordsOf(body, "place"), unit: numberOf(body, "unit", WHOLE) }, signal),
    next: (asked, body, signal) => next(asked, {
      temperature: numberOf(body, "temperature", { least: 0, most: 100, otherwise: 1 }),
      top_k: numberOf(body, "top_k", { ...WHOLE, otherwise: 0 }),
      top_p: numberOf(body, "top_p", { above: 0, most: 1, otherwise: 1 }),
      min_p: numberOf(body, "min_p", { least: 0, most: 1, otherwise: 0 }),
      seed: numberOf(body, "seed", { ...WHOLE, otherwise: 0 }),
    }, signal),
  };

  // of which run, at which of its moments (there is one), for which text and with which changes
  function askedOf(body) {
    const run = runOf(numberOf(body, "run", { ...WHOLE, otherwise: 0 }));
    const moment = numberOf(body, "moment", { whole: true, least: LAST, otherwise: LAST });
    if (moment >= run.moments.length) throw new Error(`${run.name} has no moment ${moment}`);
    const changes = (body.changes ?? []).map((change, number) => checkChange(change ?? {}, number));
    return { run, text: wordsOf(body, "text", "", ""), changes };
  }

  async function ask(address, body = {}, signal = undefined) {
    stopIfAborted(signal);
    if (address === "about") return file.about;
    const asked = askedOf(body);
    if (Object.hasOwn(asked.run.told, address)) return asked.run.told[address];
    if (Object.hasOwn(ANSWERS, address)) return ANSWERS[address](asked, body, signal);
    throw new Error("this file shows inference; for that, run `lmlab explore` in the project");
  }

  globalThis.engine = {
    ask,
    // for tests: the ids of a text, BOS first; and the logits at each position of some ids, one row after the other
    encode: (number, text) => idsOf(runOf(number), text),
    logits: async (number, ids) => (await forward(runOf(number), ids, new Flow())).data,
  };
})();
