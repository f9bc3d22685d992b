/* An answer cut into the tokens that the policy sampled, and coloured by how likely it found each.
 *
 * The cut is by the texts of tokens (`tokens.js`), and holds only if they spell the answer's text. Colours are
 * ranges over one piece of text (`CSS.highlights`), so they cost no elements. */
"use strict";

const rsTokens = (() => {
  const BOUNDS = [0.1, 0.5, 1, 2, 4, 7]; // of colours, in nats
  const strict = new TextDecoder("utf-8", { fatal: true });
  const lossy = new TextDecoder("utf-8");
  const encoder = new TextEncoder();

  /** The texts of a tokenizer's tokens: what `cut` asks. */
  const vocabulary = (found) => {
    const place = found.ids.length ? new Map(found.ids.map((id, number) => [id, number])) : null;
    const control = new Set(found.control);
    return {
      text: (id) => found.texts[place ? place.get(id) : id] ?? null,
      isControl: (id) => control.has(id),
    };
  };

  /**
   * An answer's tokens as pieces `{text, kind, surprise, ids}`; null where they do not spell its text.
   *
   * `kind` is "text"; "control" for a control token that the text leaves out; "cut" for what stands behind the
   * end of the text, such as an end string. Tokens that are parts of one character come as one piece.
   */
  const cut = (answer, words) => {
    const pieces = [];
    let place = 0;
    let bytes = [];
    let waiting = null;
    const target = answer.text;
    const push = (text, kind, ids, surprise) => pieces.push({ text, kind, ids, surprise });
    const take = (text, ids, surprise) => {
      const left = target.length - place;
      if (place === 0 && !target.startsWith(text) && text.startsWith(" ") && left) text = text.slice(1);
      const inside = text.slice(0, left);
      if (!target.startsWith(inside, place)) return false;
      if (inside || !text) push(inside, "text", ids, surprise);
      if (text.length > left) push(text.slice(left), "cut", inside ? [] : ids, inside ? null : surprise);
      place += inside.length;
      return true;
    };
    for (const [number, id] of (answer.ids || []).entries()) {
      const surprise = answer.surprise.length ? answer.surprise[number] : null;
      const text = words.text(id);
      if (text === null) return null;
      if (words.isControl(id)) {
        if (waiting) return null;
        const isInText = text && place < target.length && target.startsWith(text, place);
        push(text, isInText ? "text" : "control", [id], surprise);
        if (isInText) place += text.length;
        continue;
      }
      if (typeof text === "string" && !waiting) {
        if (!take(text, [id], surprise)) return null;
        continue;
      }
      bytes.push(...(typeof text === "string" ? encoder.encode(text) : text));
      waiting = waiting || { ids: [], surprise: surprise === null ? null : 0 };
      waiting.ids.push(id);
      if (surprise !== null) waiting.surprise += surprise;
      const whole = decoded(bytes);
      if (whole === null) continue;
      if (!take(whole, waiting.ids, waiting.surprise)) return null;
      [bytes, waiting] = [[], null];
    }
    if (waiting && !take(lossy.decode(Uint8Array.from(bytes)), waiting.ids, waiting.surprise)) return null;
    return place === target.length ? pieces : null;
  };

  /** The text of some bytes; null while the last character is not whole. */
  const decoded = (bytes) => {
    const all = Uint8Array.from(bytes);
    try {
      return strict.decode(all);
    } catch {
      return bytes.length < 8 ? null : lossy.decode(all);
    }
  };

  /** The pieces of a prompt's tokens: there is nothing to compare with, but for its text. */
  const cutPrompt = (prompt, words) => {
    const pieces = [];
    let bytes = [];
    const end = () => {
      if (bytes.length) pieces.push({ text: lossy.decode(Uint8Array.from(bytes)), kind: "text" });
      bytes = [];
    };
    for (const id of prompt.ids) {
      const text = words.text(id);
      if (text === null) return null;
      if (words.isControl(id)) {
        end();
        pieces.push({ text, kind: "control" });
      } else bytes.push(...(typeof text === "string" ? encoder.encode(text) : text));
    }
    end();
    return pieces;
  };

  const bucket = (surprise) => BOUNDS.filter((bound) => surprise >= bound).length;

  // Colours

  const isAble = typeof Highlight === "function" && Boolean(CSS.highlights);
  const NAMES = [...BOUNDS.map((_, number) => `rv-p${number + 1}`), "rv-control", "rv-match"];
  const marked = new WeakMap(); // text node -> its pieces with where they begin

  /** Take all colours away, for what is shown next. */
  const clear = () => {
    if (isAble) for (const name of NAMES) CSS.highlights.delete(name);
  };

  const colour = (name, node, begin, end) => {
    const range = new StaticRange({
      startContainer: node,
      startOffset: begin,
      endContainer: node,
      endOffset: end,
    });
    if (!CSS.highlights.has(name)) CSS.highlights.set(name, new Highlight());
    CSS.highlights.get(name).add(range);
  };

  /** Show pieces as the text of an element: control tokens marked, and with `colours` each by its surprise. */
  const show = (element, pieces, colours) => {
    const node = document.createTextNode(pieces.map((piece) => piece.text).join(""));
    element.replaceChildren(node);
    if (!isAble) return;
    let place = 0;
    const places = [];
    for (const piece of pieces) {
      const end = place + piece.text.length;
      places.push({ place, end, piece });
      if (end > place && piece.kind !== "text") colour("rv-control", node, place, end);
      else if (end > place && colours && piece.surprise !== null && bucket(piece.surprise)) {
        colour(`rv-p${bucket(piece.surprise)}`, node, place, end);
      }
      place = end;
    }
    marked.set(node, places);
  };

  /** Mark where a text is found in an element whose content is one piece of text. */
  const mark = (element, text) => {
    const node = element.firstChild;
    if (!isAble || !text || !node) return;
    const [all, small] = [node.data.toLowerCase(), text.toLowerCase()];
    if (all.length !== node.data.length) return; // letters that grow as they are made small
    for (let at = all.indexOf(small); at >= 0; at = all.indexOf(small, at + small.length)) {
      colour("rv-match", node, at, at + small.length);
    }
  };

  /** The piece under a pointer. */
  const at = (x, y) => {
    const found = document.caretPositionFromPoint
      ? document.caretPositionFromPoint(x, y)
      : document.caretRangeFromPoint && document.caretRangeFromPoint(x, y);
    if (!found) return null;
    const [node, offset] = [found.offsetNode || found.startContainer, found.offset ?? found.startOffset];
    const places = marked.get(node);
    return places ? places.find(({ place, end }) => place <= offset && offset < end)?.piece || null : null;
  };

  return { vocabulary, cut, cutPrompt, bucket, BOUNDS, isAble, clear, show, mark, at };
})();
