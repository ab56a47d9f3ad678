
"use strict";
(() => {
  // So many labels are shown at first; the others are made when somebody opens them.
  const SHOWN = 8;
  const NAMES_SHOWN = 40;
  // As much of a text as stands above its answer.
  const EXCERPT = 300;
  // The longest argument that Linux takes is 131,072 bytes.
  const ARGUMENT = 100_000;
  // Beyond the server's own deadline: then something between here and there is stuck.
  const PATIENCE = 10_000;

  const byId = (id) => document.getElementById(id);
  const count = (number) => number.toLocaleString("en");
  const plural = (number, name) => `${count(number)} ${name}${number === 1 ? "" : "s"}`;
  const sentence = (words) => words[0].toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? "" : ".");

  // The only way by which anything comes into the page: strings become text, never markup.
  const make = (name, className, ...content) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    element.append(...content);
    return element;
  };
  // A text or a label of somebody's, which may run from right to left.
  const foreign = (name, className, content) => {
    const element = make(name, className, content);
    element.dir = "auto";
    return element;
  };
  // A label, which may be broken after what joins its words.
  const labelled = (name, className, label) => {
    const element = foreign(name, className, "");
    element.append(...label.split(/(?<=[_/.:-])(?=\w)/).flatMap((part, index) => (index ? [make("wbr"), part] : [part])));
    return element;
  };
  const unseen = (words) => make("span", "unseen", words);
  const facts = (pairs) =>
    pairs.map(([term, ...detail]) => make("div", "", make("dt", "", term), make("dd", "", ...detail)));
  // Three digits, without claiming certainty.
  const score = (value) => {
    if (value > 0 && value < 0.0005) return "<0.001";
    return value < 1 && value >= 0.9995 ? ">0.999" : value.toFixed(3);
  };

  let info = null;
  let asking = null;

  // Asking the service.

  class Refusal extends Error {
    constructor(words, status = 0) {
      super(sentence(words));
      this.status = status;
    }
  }

  const typedKey = () => byId("key").value.trim();

  const call = async (path, body, signal) => {
    const headers = {};
    const key = typedKey();
    if (key && !/^[\x21-\x7e]+$/.test(key)) {
      throw new Refusal("a key has no spaces and no letters beyond ASCII: check it", 401);
    }
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body) headers["Content-Type"] = "application/json";
    const method = body ? "POST" : "GET";
    let response;
    let content = null;
    try {
      response = await fetch(path, { method, headers, body, signal, cache: "no-store" });
      content = await response.json();
    } catch (error) {
      if (signal?.aborted) throw error;
      if (!(error instanceof SyntaxError)) {
        throw new Refusal("the service cannot be reached: check the connection, and that it still runs");
      }
    }
    if (!response.ok) throw refusal(response, content);
    if (content === null) throw new Refusal("what answered is not the service: is this its address?");
    return { content, timing: response.headers.get("Server-Timing") ?? "" };
  };

  // `input[2]` is what a program calls it.
  const inWords = (message) =>
    message
      .replace(/^input\[(\d+)\]/, (_, index) => `text ${Number(index) + 1}`)
      .replace(/^text_pair\[(\d+)\]/, (_, index) => `second text ${Number(index) + 1}`)
      .replace(/^input\b/, "the text")
      .replace(/^text_pair\b/, "the second text");

  const refusal = (response, content) => {
    const { status } = response;
    // Of the service, or of a gateway before it.
    const message = typeof content?.error?.message === "string" ? content.error.message : "";
    const seconds = /^\d+$/.exec(response.headers.get("Retry-After") ?? "")?.[0];
    const later = seconds ? `try again in ${seconds} s` : "try again in a moment";
    const bytes = info ? `the ${count(info.limits.body_bytes)} bytes that` : "what";
    const words = {
      401: typedKey() ? "the service does not accept this key: check it" : "type in an API key: this service asks for one",
      413: `this is more than ${bytes} the service takes at once: send less text`,
      422: message && `the service refuses this: ${inWords(message)}`,
      429: message || `the service has more work than it can do in time: ${later}`,
      503: `the service is starting or shutting down: ${later}`,
      504: "the answer was not ready by the deadline: try again, or send less text",
    };
    const id = response.headers.get("X-Request-Id");
    const name = id ? `, request ${id}` : "";
    return new Refusal(words[status] || `${message || "the service did not answer"} (${status}${name})`, status);
  };

  const say = (id, words) => {
    byId(id).textContent = words;
    byId(id).hidden = !words;
  };

  const askForKey = (words) => {
    byId("unlock").hidden = false;
    byId("key-hint").hidden = false;
    say("key-error", words);
    byId("key").setAttribute("aria-invalid", String(Boolean(words)));
    byId("key").focus();
  };

  // The model.

  const load = async () => {
    byId("trouble").hidden = true;
    say("key-error", "");
    try {
      const { content } = await call("info");
      if (!Array.isArray(content.labels) || !content.limits) {
        throw new Refusal("what answered is not the service: is this its address?");
      }
      describe(content);
    } catch (error) {
      if (error.status === 401) {
        askForKey(typedKey() ? error.message : "");
      } else {
        byId("trouble").hidden = false;
        say("trouble-said", error.message);
      }
      return false;
    }
    byId("key").removeAttribute("aria-invalid");
    return true;
  };

  const describe = (content) => {
    info = content;
    info.limitOf = new Map(Object.entries(info.thresholds));
    const several = info.task === "multi_label";
    const many = plural(info.labels.length, "label");
    document.title = `${info.name}: text classifier`;
    byId("name").textContent = info.name;
    byId("version").textContent = `Version ${info.version}, ${info.precision}, made on ${info.created_at.slice(0, 10)}`;
    const tokens = `${count(info.max_length)} tokens`;
    const told = [
      ["Answers with", several ? `any of ${many}, each by its threshold` : `one of ${many}`],
      ["Reads", info.long_text === "window" ? `all of a text, in windows of ${tokens}` : `the first ${tokens} of a text`],
    ];
    if (!several) {
      for (const [label, limit] of info.limitOf) {
        told.push(["Threshold", labelled("bdi", "", label), ` from ${score(limit)}`]);
      }
    }
    if (info.abstain_threshold !== null) told.push(["Abstains", `below ${score(info.abstain_threshold)}`]);
    byId("facts").replaceChildren(...facts(told));
    byId("facts").hidden = false;
    const pairs = info.text_columns.length > 1;
    byId("pair-field").hidden = !pairs;
    byId("text-label").textContent = pairs ? `First text (${info.text_columns[0]})` : "Text";
    byId("pair-label").textContent = pairs ? `Second text (${info.text_columns[1]})` : "";
    byId("text").rows = pairs ? 6 : 9;
    byId("whole-label").textContent = pairs ? "One pair" : "One text";
    byId("lines-label").textContent = pairs ? "A pair on each line" : "A text on each line";
    byId("model").hidden = false;
    if (!byId("results").hasChildNodes()) showNames();
  };

  // Before the first answer: what it may be.
  const showNames = () => {
    const names = (labels) => make("ul", "names", ...labels.map((label) => labelled("li", "", label)));
    byId("answer-title").textContent = "Labels";
    byId("results").replaceChildren(
      make("p", "first", `The answer will be ${info.task === "multi_label" ? "any" : "one"} of these:`),
      names(info.labels.slice(0, NAMES_SHOWN)),
    );
    const rest = info.labels.slice(NAMES_SHOWN);
    if (rest.length) {
      byId("results").append(folded(plural(rest.length, "more label"), () => names(rest)));
    }
  };

  // Content that is made when it is opened.
  const folded = (title, content) => {
    const details = make("details", "", make("summary", "", title));
    details.addEventListener("toggle", () => details.append(content()), { once: true });
    return details;
  };

  // What was typed.

  const linesOf = (id) => byId(id).value.split(/\r?\n/);
  const hasPairs = () => !byId("pair-field").hidden;

  // The texts, and for a model that reads pairs the second ones.
  const typed = () => {
    const lines = byId("lines").checked;
    const first = lines ? linesOf("text") : [byId("text").value];
    if (!hasPairs()) {
      const texts = first.filter((text) => text.trim());
      if (!texts.length) throw new Refusal("type a text first");
      return { texts, lines };
    }
    const second = lines ? linesOf("pair") : [byId("pair").value];
    const texts = [];
    const pairs = [];
    for (let index = 0; index < Math.max(first.length, second.length); index += 1) {
      const [one, other] = [first[index] ?? "", second[index] ?? ""];
      if (Boolean(one.trim()) !== Boolean(other.trim())) {
        const where = lines ? ` on line ${index + 1}` : "";
        throw new Refusal(`type the ${one.trim() ? "second" : "first"} text${where}, too`);
      }
      if (one.trim()) {
        texts.push(one);
        pairs.push(other);
      }
    }
    if (!texts.length) throw new Refusal("type two texts first");
    return { texts, pairs, lines };
  };

  const bodyOf = ({ texts, pairs, lines }) => {
    const body = { input: lines ? texts : texts[0] };
    if (pairs) body.text_pair = lines ? pairs : pairs[0];
    return JSON.stringify(body);
  };

  const quoted = (words) => `'${words.replaceAll("'", "'\\''")}'`;

  // With what a terminal might take for a command, or show in another order, written as JSON's \u.
  const commandOf = (body) => {
    const odd = /[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;
    const plain = body.replace(odd, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);
    const long = plain.length * 3 > ARGUMENT && new TextEncoder().encode(plain).length > ARGUMENT;
    const parts = [
      `curl -s ${quoted(new URL("classify", location.href).href)}`,
      "-H 'Content-Type: application/json'",
    ];
    if (!byId("unlock").hidden) parts.push('-H "Authorization: Bearer $KEY"');
    parts.push(long ? `--data-binary @- <<'END'\n${plain}\nEND` : `-d ${quoted(plain)}`);
    return parts.join(" \\\n  ");
  };

  const showCount = () => {
    const fields = hasPairs() ? ["text", "pair"] : ["text"];
    const characters = fields.reduce((sum, id) => sum + byId(id).value.length, 0);
    const lines = linesOf("text").filter((line) => line.trim()).length;
    const read = byId("lines").checked;
    const what = hasPairs() ? "pair" : "text";
    const more = read ? `${plural(lines, what)}, ` : lines > 1 ? `${count(lines)} lines, ` : "";
    byId("count").textContent = more + plural(characters, "character");
  };

  // The answer.

  const bar = ({ label, value, given, limit, unsure, abstain }) => {
    const fill = make("span", "fill");
    fill.style.setProperty("--p", value);
    const track = make("span", "track", fill);
    track.setAttribute("aria-hidden", "true");
    for (const at of [limit, abstain]) {
      if (at === undefined) continue;
      const tick = make("span", "tick");
      tick.style.setProperty("--at", at);
      track.append(tick);
    }
    const row = make("li", given ? "given" : "", labelled("span", "label", label), track);
    if (unsure) row.classList.add("unsure");
    row.append(make("span", "p", score(value)));
    if (limit !== undefined) {
      const shown = make("span", "limit", `≥ ${score(limit)}`);
      shown.setAttribute("aria-hidden", "true");
      row.append(shown, unseen(`, threshold ${score(limit)}`));
    }
    if (given) row.append(unseen(", answered"));
    return row;
  };

  const barsOf = (item) => {
    const chosen = new Set(item.labels ?? [item.label]);
    const rows = info.labels.map((label, index) => ({
      label,
      value: item.probs[index],
      given: chosen.has(label),
      limit: info.limitOf.get(label),
      unsure: item.abstained === true,
      abstain: label === item.label ? (info.abstain_threshold ?? undefined) : undefined,
    }));
    // What is answered is shown, and comes first where a threshold chose a less probable one.
    rows.sort((one, other) => other.given - one.given || other.value - one.value);
    const list = (part) => make("ol", info.limitOf.size ? "bars limited" : "bars", ...part.map(bar));
    const marks = [];
    if (info.limitOf.size) marks.push("its label's threshold");
    if (info.abstain_threshold !== null) marks.push("the score below which the model abstains");
    const key = marks.length ? [make("p", "note", `A mark on a bar is ${marks.join(", or ")}.`)] : [];
    const shown = Math.max(SHOWN, Math.min(chosen.size, NAMES_SHOWN));
    // One more is as soon shown as its button.
    if (rows.length <= shown + 1) return [list(rows), ...key];
    const rest = rows.slice(shown);
    return [list(rows.slice(0, shown)), folded(`${count(rest.length)} more labels`, () => list(rest)), ...key];
  };

  const answered = (item) => {
    if (item.labels === undefined) return [[item.label, item.score]];
    return item.labels.map((label) => [label, item.probs[info.labels.indexOf(label)]]);
  };

  const outcome = (item) => {
    const given = answered(item);
    if (!given.length) {
      const most = labelled("bdi", "", item.label);
      return [
        make("p", "outcome", "No label"),
        make("p", "remark", "The most probable one is ", most, `, ${score(item.score)}.`),
      ];
    }
    const parts = given.map(([label, value]) =>
      make("span", "", labelled("bdi", "", label), make("span", "p", score(value))));
    return [make("p", "outcome", ...parts)];
  };

  const remarks = (item) => {
    const found = [];
    if (item.abstained) {
      const limit = score(info.abstain_threshold);
      found.push(make("p", "warning", `The model abstains: ${score(item.score)} is below ${limit}.`));
    }
    const tokens = plural(info.max_length, "token");
    if (item.truncated) found.push(make("p", "warning", `Only the first ${tokens} were read.`));
    if (item.windows > 1) found.push(make("p", "remark", `Read in ${item.windows} windows of ${tokens}.`));
    return found;
  };

  const excerpt = (text) => (text.length > EXCERPT ? `${text.slice(0, EXCERPT)}…` : text);

  const itemOf = (item, { texts, pairs }) => {
    const asked = [texts, pairs].filter(Boolean).map((of) => foreign("p", "asked", excerpt(of[item.index])));
    const bars = barsOf(item);
    const whole = texts.length === 1 ? bars : [folded("Probabilities", () => make("div", "", ...bars))];
    const reason = info.explain && texts.length === 1 ? [why([texts, pairs].filter(Boolean).map((of) => of[0]))] : [];
    return make("li", "", ...asked, ...outcome(item), ...remarks(item), ...whole, ...reason);
  };

  // Why: the words of one text, shaded by what they contribute, and the answer without some of them.

  const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
  const meaning = (value) =>
    Math.abs(value) < 0.005 ? "changes nothing" : `speaks ${value < 0 ? "against" : "for"} it, ${signed(value)}`;

  // A text with its words as buttons. Places count code points, as the service does.
  const wordsOf = (text, words, toggle, largest) => {
    const characters = Array.from(text);
    const line = foreign("p", "words", "");
    let end = 0;
    for (const word of words) {
      line.append(characters.slice(end, word.start).join(""));
      const button = make("button", word.contribution < 0 ? "word against" : "word", word.word);
      button.type = "button";
      button.title = meaning(word.contribution);
      button.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-label", `${word.word}: ${meaning(word.contribution)}`);
      button.style.setProperty("--w", Math.abs(word.contribution) / largest);
      button.addEventListener("click", () => toggle(word));
      word.button = button;
      line.append(button);
      end = word.end;
    }
    line.append(characters.slice(end).join(""));
    return line;
  };

  const withoutWords = (text, words) => {
    const characters = Array.from(text);
    for (const word of words) {
      characters.fill("", word.start, word.end);
      characters[word.start] = " ";
    }
    return characters.join("");
  };

  const listed = (words) =>
    words.flatMap((word, index) => [...(index ? [", "] : []), foreign("bdi", "", word.word)]);

  // In words, for those who do not see the shades.
  const inSentences = (item) => {
    const strongest = (sign) =>
      item.words
        .filter((word) => word.contribution * sign >= 0.005)
        .sort((one, other) => (other.contribution - one.contribution) * sign)
        .slice(0, SHOWN);
    const told = [[strongest(1), "For it: "], [strongest(-1), "Against it: "]]
      .filter(([words]) => words.length)
      .map(([words, name]) => make("p", "remark", name, ...listed(words), "."));
    if (!told.length) told.push(make("p", "remark", "No word alone changes anything."));
    const other = item.counterfactual;
    if (!other) return [...told, make("p", "remark", "No few words were found whose removal changes it.")];
    const gone = listed(other.words.map((place) => item.words[place]));
    const then = (other.labels ?? [other.label]).join(", ") || "no label";
    return [...told, make("p", "remark", "Without ", ...gone, " the answer is ", labelled("bdi", "", then), ".")];
  };

  const whatIf = (item, texts) => {
    const removed = new Set();
    const outcome = make("p", "remark", "");
    outcome.setAttribute("role", "status");
    let latest = 0;
    const again = async () => {
      latest += 1;
      const mine = latest;
      const fields = ["input", "text_pair"].slice(0, texts.length);
      const parts = fields.map((field, index) =>
        withoutWords(texts[index], [...removed].filter((word) => word.field === field)));
      if (parts.some((part) => !part.trim())) {
        outcome.textContent = "No word is left.";
        return;
      }
      const body = Object.fromEntries(fields.map((field, index) => [field, parts[index]]));
      try {
        const { content } = await call("classify", JSON.stringify(body));
        if (mine !== latest) return;
        const given = answered(content.data[0]).map(([label, value]) => `${label}, ${score(value)}`);
        const name = removed.size ? `Without ${plural(removed.size, "word")}` : "With all words";
        outcome.textContent = `${name}: ${given.join("; ") || "no label"}.`;
      } catch (error) {
        if (mine === latest) outcome.textContent = error.message;
      }
    };
    const toggle = (word) => {
      if (!removed.delete(word)) removed.add(word);
      word.button.setAttribute("aria-pressed", String(removed.has(word)));
      again();
    };
    return { toggle, outcome };
  };

  const explained = (item, texts) => {
    const { toggle, outcome } = whatIf(item, texts);
    const largest = Math.max(...item.words.map((word) => Math.abs(word.contribution)), 0.01);
    const lines = ["input", "text_pair"].slice(0, texts.length).map((field, index) =>
      wordsOf(texts[index], item.words.filter((word) => word.field === field), toggle, largest));
    const title = make("p", "", "Why ", labelled("bdi", "", item.label), item.given ? "?" : " is not answered");
    const help = make("p", "note", "Click a word to see the answer without it.");
    const scope = item.sentences ? [make("p", "note", "Only words of the sentences that matter were weighed.")] : [];
    return [title, ...lines, ...inSentences(item), ...scope, help, outcome];
  };

  const why = (texts) => {
    const button = make("button", "small", "Why?");
    button.type = "button";
    const box = make("div", "why", button);
    button.addEventListener("click", async () => {
      button.disabled = true;
      box.setAttribute("aria-busy", "true");
      try {
        const [input, pair] = texts;
        const body = pair === undefined ? { input } : { input, text_pair: pair };
        const { content } = await call("explain", JSON.stringify(body));
        box.replaceChildren(...explained(content.data[0], texts));
        box.tabIndex = -1;
        box.focus();
      } catch (error) {
        button.disabled = false;
        box.replaceChildren(button, make("p", "error", error instanceof Refusal ? error.message : "The words could not be shown."));
      } finally {
        box.removeAttribute("aria-busy");
      }
    });
    return box;
  };

  const timesOf = (timing, milliseconds) => {
    const parts = [...timing.matchAll(/([\w-]+);dur=([\d.]+)/g)];
    const times = parts.map(([, name, duration]) => [sentence(name).slice(0, -1), `${Number(duration).toFixed(1)} ms`]);
    return [...times, ["Round trip", `${milliseconds.toFixed(0)} ms`]];
  };

  const show = (content, asked, times) => {
    const list = make("ol", asked.texts.length > 1 ? "answers several" : "answers");
    // Safari takes the role from a list without marks.
    list.setAttribute("role", "list");
    list.append(...content.data.map((item) => itemOf(item, asked)));
    const told = make("dl", "facts", ...facts([["Tokens", count(content.usage.total_tokens)], ...times]));
    byId("answer-title").textContent = asked.texts.length > 1 ? plural(asked.texts.length, "answer") : "Answer";
    byId("results").replaceChildren(list, told);
  };

  const spoken = (data) => {
    if (data.length > 1) return `${plural(data.length, "text")} answered.`;
    const words = answered(data[0]).map(([label, value]) => `${label}, ${score(value)}`);
    const doubt = data[0].abstained ? " The model abstains." : "";
    return `Answer: ${words.join("; ") || "no label"}.${doubt}`;
  };

  const model = () => `${info.name}:${info.version}`;

  const ask = async () => {
    asking?.abort();
    say("error", "");
    byId("status").textContent = "";
    let asked;
    try {
      asked = typed();
      const { texts } = info.limits;
      if (asked.texts.length > texts) {
        throw new Refusal(`these are ${count(asked.texts.length)} texts, the service takes ${count(texts)} at once`);
      }
    } catch (error) {
      say("error", error.message);
      byId("text").focus();
      return;
    }
    const mine = new AbortController();
    asking = mine;
    const seconds = (info.limits.timeout_ms + PATIENCE) / 1000;
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      mine.abort();
    }, seconds * 1000);
    const body = bodyOf(asked);
    byId("curl").textContent = commandOf(body);
    byId("command").hidden = false;
    byId("answer").setAttribute("aria-busy", "true");
    byId("submit").textContent = "Classifying…";
    const began = performance.now();
    try {
      const { content, timing } = await call("classify", body, mine.signal);
      const milliseconds = performance.now() - began;
      // Probabilities come in the order of the labels of the model that answered.
      if (content.model !== model() && !((await load()) && content.model === model())) {
        throw new Refusal("another model answered than the one described here: try again");
      }
      if (mine.signal.aborted) return;
      show(content, asked, timesOf(timing, milliseconds));
      byId("status").textContent = spoken(content.data);
      if (byId("answer").getBoundingClientRect().top > innerHeight * 0.75) byId("answer").scrollIntoView();
    } catch (error) {
      if (mine.signal.aborted && !late) return;
      showNames();
      if (error.status === 401) {
        askForKey(error.message);
        byId("curl").textContent = commandOf(body);
      } else if (late) {
        say("error", `The service did not answer within ${seconds} s.`);
      } else {
        say("error", error instanceof Refusal ? error.message : "The answer could not be shown.");
      }
    } finally {
      clearTimeout(timer);
      if (asking === mine) {
        byId("answer").removeAttribute("aria-busy");
        byId("submit").textContent = "Classify";
      }
    }
  };

  const copy = async () => {
    const button = byId("copy");
    try {
      await navigator.clipboard.writeText(byId("curl").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    } catch {
      // Without TLS there is no clipboard: select it for Ctrl-C.
      getSelection().selectAllChildren(byId("curl"));
    }
  };

  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  byId("unlock").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (await load()) byId("text").focus();
  });
  byId("again").addEventListener("click", load);
  byId("copy").addEventListener("click", copy);
  byId("ask").addEventListener("input", showCount);
  byId("ask").addEventListener("keydown", (event) => {
    const asks = event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing;
    if (asks && event.target instanceof HTMLTextAreaElement) ask();
  });
  showCount();
  load();
})();
