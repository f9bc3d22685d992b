/* The viewer of rollouts: what is asked for, kept in the address, and the page that answers it.
 *
 * At most some hundred answers are in the document at a time, whatever the run's size. Left out on purpose:
 * anything that writes; and a search over all steps, for which `grep` over the ledger is the tool. */
"use strict";

const rsViewer = (() => {
  const BUDGET = 2400; // elements of prompts and answers at a time
  const NEAR = 60; // steps to choose from around the one that is shown, and as many of the others
  const FILTERS = ["status", "reason", "ended", "low", "high", "q"];
  const FIELDS = [...FILTERS, "view", "order", "sort", "show", "colour"];
  const { make, count, number, entryName } = rsParts;
  const $ = (id) => document.getElementById(`rv-${id}`);

  let index = null;
  let state = {}; // of the address: step, FIELDS, page, prompt; what is absent is empty
  let turn = 0; // of showing; an older one that ends late shows nothing
  let groups = []; // of what is read
  let chosen = [];
  let words = null;

  const HEAD = "#rollouts";

  const fromAddress = () => {
    const hash = window.location.hash;
    const query = hash.startsWith(`${HEAD}?`) ? hash.slice(HEAD.length + 1) : "";
    return Object.fromEntries(new URLSearchParams(query));
  };

  const address = (asked) => {
    const left = Object.entries(asked).filter(([, value]) => value !== "" && value !== undefined);
    return `${HEAD}?${new URLSearchParams(left)}`;
  };

  /** Ask for something else: `changes` over what is asked now; with `isNew` a step back leads here again. */
  const ask = (changes, isNew = false) => {
    const asked = { ...state, page: "", ...changes };
    const change = isNew ? "pushState" : "replaceState";
    window.history[change](null, "", address(asked));
    return show(asked);
  };

  const value = (name) => state[name] ?? "";
  const entries = () => index.entries;
  const current = () => entries().find((entry) => entry.name === state.step) || entries().find((e) => !e.heldOut) || entries()[0];

  // Showing

  const show = async (asked) => {
    const mine = ++turn;
    const isOther = !groups.length || ["step", "prompt", "promptOf"].some((key) => asked[key] !== state[key]);
    state = asked;
    fillControls();
    try {
      if (isOther) {
        tell("");
        busy("reading\u2026");
        groups = [];
        const found = await read();
        if (mine !== turn) return;
        groups = found;
      }
      words = await readWords();
      if (mine !== turn) return;
      draw();
    } catch (error) {
      if (mine !== turn) return;
      [groups, chosen] = [[], []];
      draw();
      tell(error.message);
    }
  };

  const read = async () => {
    if (value("prompt")) return readPrompt();
    const entry = current();
    if (entry.problem) throw new Error(entry.problem);
    return rsRollouts.groupsOf(entry, (done, all) => busy(all > 1 ? `reading ${done + 1} of ${all} files\u2026` : "reading\u2026"));
  };

  const readPrompt = async () => {
    const found = await rsRollouts.read(index.prompts);
    const isHeldOut = value("promptOf") === "looks";
    const places = (found.prompts.find(([held, id]) => held === isHeldOut && id === value("prompt")) || [])[2];
    if (!places) throw new Error(`The run has no prompt ${value("prompt")}.`);
    const names = found.names.map((name) => entries().find((entry) => entry.name === name));
    if (places.some(([place]) => !names[place])) throw new Error("The run has gone on since this page was made: load it again.");
    return rsRollouts.groupsAt(names, places);
  };

  const readWords = async () => {
    if (!index.tokens || !(value("colour") || value("show") === "raw")) return null;
    return rsTokens.vocabulary(await rsRollouts.read(index.tokens));
  };

  const wanted = () => Object.fromEntries([...FILTERS, "view", "order", "sort"].map((name) => [name, value(name)]));

  const look = () => ({
    view: value("prompt") ? "prompt" : value("view"),
    show: value("show"),
    colour: Boolean(value("colour")),
    q: value("q"),
    words,
    onTokens: (title, pieces) => rsParts.tokenDialog($("dialog"), title, pieces),
    onRow: (group) => rsParts.rowDialog($("dialog"), group),
    onPrompt: (group) =>
      ask({ prompt: group.prompt.id, promptOf: group.entry.heldOut ? "looks" : "steps" }, true).then(() => $("leave").focus()),
  });

  /** Cut what is chosen into pages: each a list of groups with some of their answers. */
  const paged = (found) => {
    const pages = [[]];
    let left = BUDGET;
    for (const group of found) {
      let answers = [];
      const put = () => answers.length && pages[pages.length - 1].push([group, answers]);
      left -= rsParts.costOf(group);
      for (const answer of group.shown) {
        if (left < rsParts.CARD_COST) {
          put();
          if (pages[pages.length - 1].length) pages.push([]);
          answers = [];
          left = BUDGET - rsParts.costOf(group);
        }
        answers.push(answer);
        left -= rsParts.CARD_COST;
      }
      put();
    }
    return pages;
  };

  const draw = () => {
    chosen = rsRollouts.choose(groups, { ...wanted(), view: value("prompt") ? "" : value("view") });
    const pages = paged(chosen);
    const page = Math.min(pages.length, Math.max(1, Number(value("page")) || 1));
    rsTokens.clear();
    const seen = look();
    $("groups").replaceChildren(...pages[page - 1].map(([group, answers]) => rsParts.groupBox(group, answers, seen)));
    drawLegend();
    drawPages(page, pages.length);
    const answers = chosen.reduce((sum, group) => sum + group.shown.length, 0);
    const all = groups.reduce((sum, group) => sum + group.answers.length, 0);
    const prompts = new Set(chosen.map((group) => `${group.entry.name} ${group.prompt.group}`)).size;
    const where = value("prompt") ? count(new Set(chosen.map((g) => g.entry.name)).size, "place in the run", "places in the run") : count(prompts, "prompt");
    const whose = value("prompt") ? `Prompt ${value("prompt")}: ` : "";
    $("count").textContent = `${whose}${count(answers, "answer")} of ${number(all)}, ${where}`;
    $("groups").setAttribute("aria-busy", "false");
    $("groups").dataset.shown = window.location.hash; // what is asked for is here
  };

  const drawPages = (page, pages) => {
    for (const [nav, before, told, after] of [
      ["pages", "page-before", "page", "page-after"],
      ["pages-below", "below-before", "below-page", "below-after"],
    ]) {
      $(nav).hidden = pages < 2;
      $(told).textContent = `page ${number(page)} of ${number(pages)}`;
      $(before).disabled = page === 1;
      $(after).disabled = page === pages;
    }
  };

  const drawLegend = () => {
    const isOn = Boolean(value("colour"));
    $("legend").hidden = !isOn;
    if (!isOn) return;
    if (!rsTokens.isAble) {
      $("legend").textContent = "This browser cannot colour parts of a text (CSS custom highlights).";
      return;
    }
    if (!index.tokens) {
      $("legend").textContent =
        "Nothing is coloured: no tokenizer.json of this run was found when the page was made (in final/, checkpoints/ or the model's folder).";
      return;
    }
    const bounds = ["0", ...rsTokens.BOUNDS.map(String)];
    const names = bounds.map((low, place) =>
      place + 1 < bounds.length ? `${low} to ${bounds[place + 1]}` : `${low} and more`,
    );
    $("legend").replaceChildren(
      "How much each token surprised the policy, in nats (minus its log-probability): ",
      ...names.map((name, place) => make("span", `rv-key rv-b${place}`, {}, name)),
      make("span", "rv-key rv-b-control", {}, "control token, or behind the end"),
    );
  };

  const busy = (text) => {
    $("count").textContent = text;
    $("groups").setAttribute("aria-busy", "true");
  };

  const tell = (text) => {
    $("note").textContent = text;
    $("note").hidden = !text;
  };

  // Controls

  const option = (value, text) => make("option", "", { value }, text);

  const summary = (entry) => {
    if (entry.problem) return `${entry.step} (cannot be read)`;
    const parts = [count(entry.rollouts, "answer")];
    if (!entry.heldOut) parts.push(`${number(entry.kept)} kept`);
    const scored = entry.rollouts - entry.failed;
    if (scored) parts.push(`mean ${number(entry.total / scored)}`);
    if (entry.failed) parts.push(`${number(entry.failed)} without a score`);
    return `${entry.step}: ${parts.join(", ")}`;
  };

  const fillControls = () => {
    const entry = current();
    const same = entries().filter((one) => one.heldOut === entry.heldOut);
    const place = same.indexOf(entry);
    const every = Math.ceil(same.length / NEAR);
    const near = same.filter((_, at) => Math.abs(at - place) <= NEAR || at % every === 0 || at + 1 === same.length);
    $("kind").value = entry.heldOut ? "looks" : "steps";
    $("step").replaceChildren(...near.map((one) => option(one.name, summary(one))));
    $("step").value = entry.name;
    $("before").disabled = place === 0;
    $("after").disabled = place === same.length - 1;
    const isPrompt = Boolean(value("prompt"));
    const all = isPrompt ? entries().filter((one) => one.heldOut === (value("promptOf") === "looks")) : [entry];
    const reasons = new Map();
    for (const one of all) for (const [name, many] of Object.entries(one.reasons)) reasons.set(name, (reasons.get(name) || 0) + many);
    if (value("reason") && !reasons.has(value("reason"))) reasons.set(value("reason"), 0);
    $("reason").replaceChildren(option("", "any"), ...[...reasons].map(([name, many]) => option(name, isPrompt ? name : `${name} (${number(many)})`)));
    for (const name of FIELDS) {
      const control = $(name);
      if (control.type === "checkbox") control.checked = Boolean(value(name));
      else if (control !== document.activeElement || control.value !== value(name)) control.value = value(name);
    }
    $("leave").hidden = !isPrompt;
    for (const name of ["kind", "step", "view", "order"]) $(name).disabled = isPrompt;
    if (isPrompt) $("before").disabled = $("after").disabled = true;
  };

  const move = (by) => {
    const entry = current();
    const same = entries().filter((one) => one.heldOut === entry.heldOut);
    const next = same[same.indexOf(entry) + by];
    if (next) ask({ step: next.name }, true);
  };

  const turnPage = (by) => {
    ask({ page: String((Number(value("page")) || 1) + by) }).then(() => $("count").scrollIntoView({ block: "nearest" }));
  };

  const listen = () => {
    $("controls").addEventListener("submit", (event) => event.preventDefault());
    for (const name of FIELDS) {
      const control = $(name);
      const isTyped = control.type === "search" || control.type === "number";
      let wait = 0;
      control.addEventListener(isTyped ? "input" : "change", () => {
        const told = control.type === "checkbox" ? (control.checked ? "1" : "") : control.value;
        clearTimeout(wait);
        wait = setTimeout(() => ask({ [name]: told }), isTyped ? 150 : 0);
      });
    }
    $("kind").addEventListener("change", () => {
      const isHeldOut = $("kind").value === "looks";
      const near = current().step;
      const same = entries().filter((entry) => entry.heldOut === isHeldOut);
      const next = same.filter((entry) => entry.step <= near).pop() || same[0];
      ask({ step: next.name, status: "", reason: "" }, true);
    });
    $("step").addEventListener("change", () => ask({ step: $("step").value }, true));
    $("before").addEventListener("click", () => move(-1));
    $("after").addEventListener("click", () => move(1));
    $("leave").addEventListener("click", () => ask({ prompt: "", promptOf: "" }, true).then(() => $("step").focus()));
    $("reset").addEventListener("click", () => ask(Object.fromEntries(FIELDS.map((name) => [name, ""]))));
    for (const id of ["page-before", "below-before"]) $(id).addEventListener("click", () => turnPage(-1));
    for (const id of ["page-after", "below-after"]) $(id).addEventListener("click", () => turnPage(1));
    $("dialog").addEventListener("click", (event) => event.target === $("dialog") && $("dialog").close());
    window.addEventListener("hashchange", () => window.location.hash.startsWith(HEAD) && follow());
    window.addEventListener("popstate", () => window.location.hash.startsWith(HEAD) && follow());
    listenToPointer();
  };

  const listenToPointer = () => {
    const tip = $("tip");
    $("groups").addEventListener("pointermove", (event) => {
      const piece = value("colour") ? rsTokens.at(event.clientX, event.clientY) : null;
      tip.hidden = !piece || piece.surprise === null || piece.surprise === undefined;
      if (tip.hidden) return;
      const chance = Math.exp(-piece.surprise).toPrecision(2);
      tip.textContent = `${JSON.stringify(piece.text)}: log-probability ${number(-piece.surprise || 0)}, probability ${chance}`;
      tip.style.left = `${Math.max(0, Math.min(event.clientX + 12, window.innerWidth - tip.offsetWidth - 8))}px`;
      tip.style.top = `${event.clientY + 18}px`;
    });
    $("groups").addEventListener("pointerleave", () => {
      tip.hidden = true;
    });
  };

  const follow = () => {
    const asked = fromAddress();
    if (address(asked) !== address(state)) show(asked);
  };

  const start = () => {
    index = JSON.parse(document.getElementById("rv-index").textContent);
    rsRollouts.open(index);
    if (!index.entries.length) {
      $("controls").hidden = true;
      $("pages").hidden = $("pages-below").hidden = true;
      $("count").textContent = "The run has no rollouts yet.";
      return;
    }
    const kinds = new Set(index.entries.map((entry) => entry.heldOut));
    $("kind-field").hidden = kinds.size < 2;
    listen();
    if (window.location.hash.startsWith(`${HEAD}?`)) {
      show(fromAddress()).then(() => document.getElementById("rv").scrollIntoView());
      return;
    }
    const begin = new IntersectionObserver((seen) => {
      if (!seen.some((one) => one.isIntersecting)) return;
      begin.disconnect();
      if (!turn) show(fromAddress()); // nothing is read before somebody gets here
    }, { rootMargin: "300px" });
    begin.observe(document.getElementById("rv"));
  };

  return { start };
})();
