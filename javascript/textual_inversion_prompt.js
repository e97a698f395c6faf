// The habits of a WebUI in the prompts of the standalone page: Ctrl+Enter draws, Ctrl+↑ and ↓ set the emphasis, < completes names.
(function () {
    "use strict";
    const ti = (window.textualInversion = window.textualInversion || {});
    if (ti.habits) return; // a page that loads the script twice listens once
    ti.habits = true;

    const FIELDS = "#ti_txt2img_prompt textarea, #ti_txt2img_negative_prompt textarea";
    const STEP = 0.1, MOST = 8;
    const WEIGHT = /^(?::\s*(\d+(?:\.\d*)?|\.\d+)\s*)?\)/, TAG = /^(?::\s*(\d+(?:\.\d*)?|\.\d+)\s*)?>/;
    const list = { node: null, field: null, names: [], at: 0 };

    // The word at the cursor, or the part that is marked, as [start, end].
    function part(text, start, end) {
        if (start !== end) return [start, end];
        const ends = (at) => at < 0 || at >= text.length || /[\s,:()<>[\]\\]/.test(text[at]);
        while (!ends(start - 1)) start -= 1;
        while (!ends(end)) end += 1;
        return [start, end];
    }

    // The text with the emphasis of the marked part changed by `by`: (word:1.1); at 1 the brackets go. Returns [text, start, end] of the part.
    ti.emphasised = function (text, start, end, by) {
        [start, end] = part(text, start, end);
        if (start === end) return null;
        const before = /(?<!\\)\($/.test(text.slice(0, start)), opened = /<$/.test(text.slice(0, start));
        const weight = before ? WEIGHT.exec(text.slice(end)) : null, tag = opened ? TAG.exec(text.slice(end)) : null;
        if ((opened && !tag) || (before && !weight && /^:/.test(text.slice(end)))) return null; // begun, or with what is no number
        const inside = weight, inner = text.slice(start, end);
        const now = tag ? Number(tag[1] || 1) : inside ? Number(weight[1] || 1.1) : 1; // (word) alone is 1.1
        const next = Math.round(Math.max(0, now + by) * 100) / 100;
        if (tag) return [text.slice(0, end) + (next === 1 ? "" : ":" + next) + ">" + text.slice(end + tag[0].length), start, end];
        const head = text.slice(0, inside ? start - 1 : start), tail = text.slice(inside ? end + weight[0].length : end);
        if (next === 1) return [head + inner + tail, head.length, head.length + inner.length];
        return [head + "(" + inner + ":" + next + ")" + tail, head.length + 1, head.length + 1 + inner.length];
    };

    function emphasise(field, by) {
        const found = ti.emphasised(field.value, field.selectionStart, field.selectionEnd, by);
        if (!found) return;
        const [text, start, end] = found;
        ti.typeInto(field, 0, field.value.length, text);
        field.setSelectionRange(start, end);
    }

    // What is typed behind the last < before the cursor; null where there is none, or where it is closed.
    function begun(field) {
        const found = /<([^<>:\n]*)$/.exec(field.value.slice(0, field.selectionStart));
        return found && field.selectionStart === field.selectionEnd ? found[1] : null;
    }

    function offer(field) {
        const typed = begun(field);
        const names = typed === null || !ti.cardNames ? [] : ti.cardNames(typed.trim().toLowerCase()).slice(0, MOST);
        if (!names.length) return close();
        if (!list.node) {
            list.node = ti.el("ul", { class: "ti-complete", role: "listbox", id: "ti_complete", "aria-label": "Embeddings" });
            list.node.addEventListener("pointerdown", (event) => { const row = event.target.closest("li"); if (row) { event.preventDefault(); take(Number(row.dataset.at)); } });
        }
        Object.assign(list, { field, names, at: 0 });
        field.insertAdjacentElement("afterend", list.node);
        for (const [key, value] of [["aria-controls", "ti_complete"], ["aria-expanded", "true"], ["role", "combobox"]]) field.setAttribute(key, value);
        draw();
    }

    function draw() {
        list.node.replaceChildren(...list.names.map((name, at) => ti.el("li", { role: "option", id: "ti_complete_" + at, "data-at": at, "aria-selected": String(at === list.at) }, name)));
        list.field.setAttribute("aria-activedescendant", "ti_complete_" + list.at);
    }

    function close() {
        if (!list.field) return;
        for (const key of ["aria-controls", "aria-expanded", "role", "aria-activedescendant"]) list.field.removeAttribute(key);
        if (list.node) list.node.remove();
        list.field = null;
    }

    function take(at) {
        const field = list.field, typed = begun(field), name = list.names[at], end = field.selectionStart;
        close();
        const closed = field.value[end] === ">" ? 1 : 0;
        if (typed !== null) ti.typeInto(field, end - typed.length, end + closed, name + ">");
        close(); // what was typed has offered names once more
    }

    function keys(event) {
        const field = event.target;
        if (!field.matches || !field.matches(FIELDS) || event.altKey) return;
        if (event.ctrlKey || event.metaKey) {
            if (event.key === "Enter") { event.preventDefault(); ti.press("ti_generate"); }
            else if (event.key === "ArrowUp" || event.key === "ArrowDown") { event.preventDefault(); emphasise(field, event.key === "ArrowUp" ? STEP : -STEP); }
        } else if (list.field === field) {
            const moves = { ArrowDown: 1, ArrowUp: -1 };
            if (event.key in moves) { event.preventDefault(); list.at = (list.at + moves[event.key] + list.names.length) % list.names.length; draw(); }
            else if (event.key === "Enter" || event.key === "Tab") { event.preventDefault(); take(list.at); }
            else if (event.key === "Escape") { event.preventDefault(); close(); }
        }
    }

    document.addEventListener("keydown", keys, true); // before gradio, which would take Enter
    document.addEventListener("input", (event) => { if (event.target.matches && event.target.matches(FIELDS) && event.target === document.activeElement) offer(event.target); });
    document.addEventListener("focusout", (event) => { if (event.target === list.field) close(); });
})();
