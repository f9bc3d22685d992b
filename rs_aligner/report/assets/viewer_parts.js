/* The elements that a rollout is shown with. Texts of models and data are put in as text, never as markup. */
"use strict";

const rsParts = (() => {
  const CLAMP = 900; // letters of a text before it is asked for whole
  const TURNS = 30; // of a chat that are shown, the last ones
  const TOKENS_A_PAGE = 100;

  /** An element: its class, its attributes, its content (texts, elements, or nothing). */
  const make = (tag, look = "", attributes = {}, ...content) => {
    const element = document.createElement(tag);
    if (look) element.className = look;
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "onclick") element.addEventListener("click", value);
      else element.setAttribute(name, value);
    }
    element.append(...content.filter((part) => part !== null && part !== ""));
    return element;
  };

  /** A number for people: four digits that count. */
  const number = (value) => {
    if (value === null || value === undefined) return "none";
    const text = Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
    return text.replace(/^-/, "\u2212");
  };

  const count = (many, one, more = `${one}s`) => `${many.toLocaleString("en")} ${many === 1 ? one : more}`;

  const entryName = (entry) =>
    !entry.heldOut
      ? `step ${entry.step}`
      : entry.step
        ? `held-out prompts behind step ${entry.step}`
        : "held-out prompts before the first step";

  const statusOf = (entry, answer) => {
    if (answer.score === null) return ["failed", "no score"];
    if (entry.heldOut) return ["held", "held out"];
    return answer.kept ? ["kept", "kept"] : ["rejected", "rejected"];
  };

  /** An element with a text, cut short at first if it is long; `fill(element, whole)` puts the text in. */
  const clamped = (look, length, whole, fill, what) => {
    const text = make("div", look);
    if (length <= CLAMP || whole) {
      fill(text, Infinity);
      return [text];
    }
    fill(text, CLAMP);
    const button = make("button", "rv-more", { type: "button", "aria-expanded": "false" });
    button.textContent = `Show all ${count(length, "letter")}`;
    button.setAttribute("aria-label", `Show all ${count(length, "letter")} of ${what}`);
    button.addEventListener("click", () => {
      const isOpen = button.getAttribute("aria-expanded") === "true";
      fill(text, isOpen ? CLAMP : Infinity);
      button.setAttribute("aria-expanded", String(!isOpen));
      button.textContent = isOpen ? `Show all ${count(length, "letter")}` : "Show less";
      button.setAttribute("aria-label", `${button.textContent} of ${what}`);
    });
    return [text, button];
  };

  const shortened = (pieces, limit) => {
    const kept = [];
    let left = limit;
    for (const piece of pieces) {
      if (left <= 0) {
        kept.push({ text: "\u2026", kind: "text", surprise: null });
        break;
      }
      kept.push(piece.text.length > left ? { ...piece, text: `${piece.text.slice(0, left)}\u2026` } : piece);
      left -= piece.text.length;
    }
    return kept;
  };

  const plain = (text) => [{ text, kind: "text", surprise: null }];

  /** An answer as a card. `look` has show, colour, q, words (the tokens' texts or null), onTokens. */
  const card = (group, answer, look) => {
    const name = `answer ${answer.index} to prompt ${group.prompt.id}`;
    const [status, said] = statusOf(group.entry, answer);
    const pieces = look.words ? rsTokens.cut(answer, look.words) : null;
    const isCut = pieces !== null && (look.colour || look.show === "raw");
    const shown = isCut ? pieces : plain(answer.text);
    const length = shown.reduce((sum, piece) => sum + piece.text.length, 0);
    const fill = (element, limit) => {
      rsTokens.show(element, length > limit ? shortened(shown, limit) : shown, look.colour);
      rsTokens.mark(element, look.q);
    };
    const found = look.q ? answer.text.toLowerCase().indexOf(look.q.toLowerCase()) : -1;
    const facts = [
      count(answer.length, "token"),
      `ended by ${answer.ended}`,
      `policy version ${answer.version}`,
      answer.by_design ? "" : "sampled because others were not good enough",
    ].filter(Boolean);
    const parts = answer.components.filter(([, value]) => value !== null);
    const reason = answer.score === null ? `${answer.reason}: ${answer.failure || "no reason recorded"}` : answer.reason;
    const isBlind = (look.colour || look.show === "raw") && look.words && pieces === null;
    return make(
      "article",
      `rv-card rv-is-${status}`,
      { "aria-label": `${name}: ${said}` },
      make(
        "p",
        "rv-card-head",
        {},
        make("span", "rv-badge", {}, said),
        make("strong", "rv-score", {}, answer.score === null ? "" : number(answer.score)),
        make("span", "rv-index", {}, `#${answer.index}`),
      ),
      reason === said ? null : make("p", "rv-reason", {}, reason),
      parts.length ? make("p", "rv-parts", {}, parts.map(([part, value]) => `${part} ${number(value)}`).join(" \u00b7 ")) : null,
      group.entry.watched ? make("p", "rv-parts", {}, watched(answer)) : null,
      ...clamped("rv-text", length, found > CLAMP - look.q.length, fill, name),
      length ? null : make("p", "rv-reason", {}, "an empty answer"),
      isBlind ? make("p", "rv-reason", {}, blind(answer)) : null,
      make("p", "rv-facts", {}, facts.join(" \u00b7 ")),
      look.words && pieces !== null
        ? make(
            "button",
            "rv-more",
            { type: "button", "aria-label": `Tokens of ${name}`, onclick: () => look.onTokens(name, pieces) },
            "Tokens",
          )
        : null,
    );
  };

  const watched = (answer) =>
    answer.watched_failure ? `watched judge: ${answer.watched_failure}` : `watched judge ${number(answer.watched)}`;

  const blind = (answer) =>
    (answer.ids || []).length
      ? "The tokenizer's tokens do not spell this text, so it is not cut into them."
      : "The ledger has no tokens of this answer.";

  const bubbles = (group, look) => {
    const left = Math.max(0, group.prompt.chat.length - TURNS);
    const turns = group.prompt.chat.slice(left).map((turn, place) =>
      make(
        "div",
        "rv-turn",
        {},
        make("p", "rv-role", {}, turn.role || "no role"),
        ...clamped("rv-text", turn.text.length, Boolean(look.q) && turn.text.toLowerCase().includes(look.q.toLowerCase()),
          (element, limit) => {
            rsTokens.show(element, shortened(plain(turn.text), limit), false);
            rsTokens.mark(element, look.q);
          }, `turn ${left + place + 1} of prompt ${group.prompt.id}`),
      ),
    );
    const before = left ? make("p", "rv-reason", {}, `${count(left, "turn")} before these, in the data row`) : null;
    const begun = group.prompt.prefilled
      ? make("p", "rv-reason", {}, "Each answer goes on from: ", make("code", "", {}, group.prompt.prefilled))
      : null;
    return [before, ...turns, begun].filter(Boolean);
  };

  const promptText = (group, look) => {
    const { prompt } = group;
    if ((prompt.chat || []).length && look.show !== "raw") return bubbles(group, look);
    const cut = look.show === "raw" && look.words ? rsTokens.cutPrompt(prompt, look.words) : null;
    const shown = cut || plain(prompt.text);
    const length = shown.reduce((sum, piece) => sum + piece.text.length, 0);
    const isFound = Boolean(look.q) && prompt.text.toLowerCase().includes(look.q.toLowerCase());
    return clamped("rv-text rv-prompt-text", length, isFound, (element, limit) => {
      rsTokens.show(element, shortened(shown, limit), false);
      rsTokens.mark(element, look.q);
    }, `prompt ${prompt.id}`);
  };

  const groupFacts = (group) => {
    const scores = rsRollouts.scoresOf(group);
    const kept = group.answers.filter((answer) => answer.kept).length;
    const { length } = group.answers;
    return [
      count(length, "answer"),
      group.entry.heldOut ? "" : `${kept} kept`,
      scores.length ? `mean score ${number(rsRollouts.mean(scores))}` : "no scores",
      scores.length ? `best ${number(Math.max(...scores))}` : "",
      group.shown.length < length ? `${group.shown.length} of them shown` : "",
    ].filter(Boolean).join(" \u00b7 ");
  };

  /** At most how many elements a prompt takes, and an answer. */
  const costOf = (group) => 16 + 5 * Math.min(TURNS, (group.prompt.chat || []).length);
  const CARD_COST = 13;

  /** A prompt with the answers of it that are shown. */
  const groupBox = (group, answers, look) => {
    const { prompt, entry } = group;
    const title = look.view === "prompt" ? entryName(entry) : `Prompt ${prompt.id}`;
    return make(
      "section",
      "rv-group",
      { "aria-label": `${title}, ${count(group.answers.length, "answer")}` },
      make("h3", "rv-title", {}, title[0].toUpperCase() + title.slice(1)),
      make("p", "rv-facts", {}, groupFacts(group)),
      make("div", "rv-prompt", {}, ...promptText(group, look)),
      make(
        "div",
        "rv-links",
        {},
        look.view === "prompt"
          ? null
          : make("button", "rv-more", {
              type: "button",
              "aria-label": `Prompt ${prompt.id} over all steps`,
              onclick: () => look.onPrompt(group),
            }, "This prompt over all steps"),
        make("button", "rv-more", {
          type: "button",
          "aria-label": `Data row of prompt ${prompt.id}`,
          onclick: () => look.onRow(group),
        }, "Data row"),
      ),
      make("div", "rv-answers", {}, ...answers.map((answer) => card(group, answer, look))),
    );
  };

  // The dialog

  const openDialog = (dialog, title, ...content) => {
    dialog.replaceChildren(
      make("h3", "rv-title", { id: "rv-dialog-title" }, title),
      ...content,
      make("button", "rv-close", { type: "button", onclick: () => dialog.close() }, "Close"),
    );
    dialog.showModal();
  };

  const rowDialog = (dialog, group) => {
    openDialog(
      dialog,
      `Data row of prompt ${group.prompt.id}`,
      make("pre", "rv-text rv-scroll", { tabindex: "0", "aria-label": "Data row" }, group.prompt.row),
    );
  };

  const tokenDialog = (dialog, title, pieces) => {
    const [body, told] = [make("tbody"), make("span", "", { role: "status" })];
    const pages = Math.max(1, Math.ceil(pieces.length / TOKENS_A_PAGE));
    const show = (page) => {
      const first = page * TOKENS_A_PAGE;
      body.replaceChildren(
        ...pieces.slice(first, first + TOKENS_A_PAGE).map((piece, place) => tokenRow(piece, first + place)),
      );
      told.textContent = `page ${page + 1} of ${pages}`;
      before.disabled = page === 0;
      after.disabled = page + 1 >= pages;
      shown = page;
    };
    let shown = 0;
    const before = make("button", "", { type: "button", onclick: () => show(shown - 1) }, "Previous page");
    const after = make("button", "", { type: "button", onclick: () => show(shown + 1) }, "Next page");
    const heads = ["place", "token", "id", "log-probability", "probability"];
    const table = make(
      "table",
      "rv-tokens",
      {},
      make("thead", "", {}, make("tr", "", {}, ...heads.map((head) => make("th", "", { scope: "col" }, head)))),
      body,
    );
    show(0);
    openDialog(
      dialog,
      `Tokens of ${title}`,
      make("div", "rv-scroll", { tabindex: "0", role: "region", "aria-label": "Table of tokens" }, table),
      pages > 1 ? make("p", "rv-pages", {}, before, told, after) : null,
    );
  };

  const tokenRow = (piece, place) => {
    const known = piece.surprise !== null && piece.surprise !== undefined;
    const what = piece.kind === "text" ? "" : piece.kind === "control" ? " (control token)" : " (behind the end)";
    return make(
      "tr",
      known ? `rv-b${rsTokens.bucket(piece.surprise)}` : "",
      {},
      make("td", "", {}, String(place)),
      make("td", "rv-token", {}, JSON.stringify(piece.text).slice(1, -1).replaceAll('\\"', '"') + what),
      make("td", "", {}, (piece.ids || []).join(" ")),
      make("td", "", {}, known ? number(-piece.surprise || 0) : ""),
      make("td", "", {}, known ? Math.exp(-piece.surprise).toPrecision(2) : ""),
    );
  };

  return { make, number, count, entryName, costOf, CARD_COST, groupBox, rowDialog, tokenDialog };
})();
