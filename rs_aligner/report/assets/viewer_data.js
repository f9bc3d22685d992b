/* The rollouts of a run as the page has them: reading the files beside it, and choosing, sorting, finding.
 *
 * The files are scripts that call `rsRollouts.add`, `.prompts` or `.tokens` with JSON, since a page that is
 * opened from a file cannot fetch. Nothing here touches the document but to have a script loaded. */
"use strict";

const rsRollouts = (() => {
  const KEPT_FILES = 12; // files in memory besides those that are shown
  const arrived = new Map(); // file -> what it said
  const pending = new Map(); // file -> a promise of it
  let index = { folder: "", entries: [], inside: false };

  const fileOf = (name, part) => (part ? `${name}_${part + 1}.js` : `${name}.js`);

  // Called by the files.
  const add = (part) => arrived.set(fileOf(part.name, part.part), part);
  const prompts = (found) => arrived.set("prompts.js", found);
  const tokens = (found) => arrived.set("tokens.js", found);

  const open = (found) => {
    index = found;
  };

  /** What a file says; a promise, which fails with words for a reader. */
  const read = (file) => {
    if (arrived.has(file)) {
      const found = arrived.get(file);
      if (!index.inside) {
        arrived.delete(file); // the newest stand last
        arrived.set(file, found);
      }
      return Promise.resolve(found);
    }
    if (!pending.has(file)) {
      pending.set(
        file,
        load(`${index.folder}/${file}`).then(() => {
          pending.delete(file);
          const found = arrived.get(file);
          if (!found) throw new Error(`${index.folder}/${file} is not a file of this report`);
          forget();
          return found;
        }),
      );
    }
    return pending.get(file);
  };

  const load = (source) =>
    new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = source;
      script.onload = () => {
        script.remove();
        resolve();
      };
      script.onerror = () => {
        script.remove();
        pending.delete(source.slice(index.folder.length + 1));
        reject(
          new Error(
            `${source} cannot be read. The folder ${index.folder}/ has to lie beside this page; ` +
              "if the run goes on, load the page again.",
          ),
        );
      };
      document.head.append(script);
    });

  const forget = () => {
    if (index.inside) return;
    const files = [...arrived.keys()].filter((name) => name !== "prompts.js" && name !== "tokens.js");
    for (const file of files.slice(0, Math.max(0, files.length - KEPT_FILES))) arrived.delete(file);
  };

  /** The groups of an entry, each with its answers: `{entry, part, prompt, answers}`; a promise. */
  const groupsOf = async (entry, progress = () => {}) => {
    const groups = [];
    for (const [number, file] of entry.files.entries()) {
      progress(number, entry.files.length);
      const part = await read(file);
      checkKey(entry, part);
      for (const prompt of part.prompts) {
        const last = groups[groups.length - 1];
        if (last && last.prompt.group === prompt.group) last.answers.push(...answersOf(part, prompt));
        else groups.push({ entry, prompt, answers: answersOf(part, prompt) });
      }
    }
    return groups;
  };

  /** The groups of one prompt, of the places that `prompts.js` has of it. */
  const groupsAt = async (entries, places) => {
    const groups = new Map();
    for (const [number, part, group] of places) {
      const entry = entries[number];
      const found = await read(fileOf(entry.name, part));
      checkKey(entry, found);
      for (const prompt of found.prompts) {
        if (prompt.group !== group) continue;
        const key = `${number} ${group}`;
        if (groups.has(key)) groups.get(key).answers.push(...answersOf(found, prompt));
        else groups.set(key, { entry, prompt, answers: answersOf(found, prompt) });
      }
    }
    return [...groups.values()];
  };

  const checkKey = (entry, part) => {
    if (part.key !== entry.key) {
      throw new Error("The run has written this step again since this page was made: load the page again.");
    }
  };

  const answersOf = (part, prompt) =>
    prompt.answers.map((answer) => ({
      score: null,
      watched: null,
      kept: false,
      failure: null,
      by_design: true,
      ...answer,
      surprise: surprises(answer.surprise),
      components: part.components.map((name, place) => [name, (answer.components || [])[place] ?? null]),
    }));

  /** Nats by which each token surprised the policy, from hundredths of 16 bits in base64. */
  const surprises = (packed) => {
    if (!packed) return [];
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    return Array.from(new Uint16Array(bytes.buffer), (hundredths) => hundredths / 100);
  };

  // Choosing

  const STATUS = {
    kept: (answer) => answer.kept,
    rejected: (answer) => !answer.kept && answer.score !== null,
    failed: (answer) => answer.score === null,
  };

  /** Whether an answer is wanted; `wanted` has status, reason, ended, low, high and q, empty for any. */
  const fits = (group, answer, wanted) => {
    if (wanted.status && !STATUS[wanted.status](answer)) return false;
    if (wanted.reason && answer.reason !== wanted.reason) return false;
    if (wanted.ended && answer.ended !== wanted.ended) return false;
    if (wanted.low !== "" && !(answer.score !== null && answer.score >= Number(wanted.low))) return false;
    if (wanted.high !== "" && !(answer.score !== null && answer.score <= Number(wanted.high))) return false;
    if (!wanted.q) return true;
    const text = wanted.q.toLowerCase();
    return has(answer.text, text) || has(group.prompt.text, text) || has(group.prompt.id, text);
  };

  const has = (text, small) => text.toLowerCase().includes(small);

  const figure = (value, isUp) => (value === null || value === undefined ? Infinity : isUp ? value : -value);
  const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);
  const surprise = (answer) => mean(answer.surprise);

  const SORTS = {
    index: () => 0,
    "score-down": (answer) => figure(answer.score, false),
    "score-up": (answer) => figure(answer.score, true),
    "length-down": (answer) => figure(answer.length, false),
    "length-up": (answer) => figure(answer.length, true),
    "watched-down": (answer) => figure(answer.watched, false),
    "apart-down": (answer) =>
      figure(answer.score === null || answer.watched == null ? null : Math.abs(answer.score - answer.watched)),
    "likely-down": (answer) => figure(surprise(answer), true),
    "likely-up": (answer) => figure(surprise(answer), false),
  };

  const scoresOf = (group) => group.answers.map((answer) => answer.score).filter((score) => score !== null);
  const spread = (values) => (values.length ? Math.max(...values) - Math.min(...values) : null);

  const ORDERS = {
    data: () => 0,
    hardest: (group) => figure(mean(scoresOf(group)), true),
    easiest: (group) => figure(mean(scoresOf(group)), false),
    apart: (group) => figure(spread(scoresOf(group)), false),
  };

  /** By a figure, those without one last; equal ones stay in their order. */
  const sorted = (things, by) => {
    const figures = new Map(things.map((thing) => [thing, by(thing)]));
    return [...things].sort((one, other) => {
      const [a, b] = [figures.get(one), figures.get(other)];
      return a < b ? -1 : a > b ? 1 : 0;
    });
  };

  /** The wanted answers of some groups: groups in order, each with `shown`, its wanted answers as sorted. */
  const choose = (groups, wanted) => {
    const by = SORTS[wanted.sort] || SORTS.index;
    const found = sorted(groups, ORDERS[wanted.order] || ORDERS.data)
      .map((group) => ({
        ...group,
        shown: sorted(
          group.answers.filter((answer) => fits(group, answer, wanted)),
          by,
        ),
      }))
      .filter((group) => group.shown.length);
    if (wanted.view !== "answers") return found;
    const pairs = found.flatMap((group) => group.shown.map((answer) => ({ group, answer })));
    return sorted(pairs, (pair) => by(pair.answer)).map(({ group, answer }) => ({ ...group, shown: [answer] }));
  };

  return { add, prompts, tokens, open, read, groupsOf, groupsAt, choose, fits, mean, scoresOf };
})();
