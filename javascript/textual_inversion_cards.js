// The Textual Inversion cards of the standalone page: search, refresh, and words that go into the prompt and out of it again.
(function () {
    "use strict";
    const ti = (window.textualInversion = window.textualInversion || {});
    const PROMPTS = ["ti_txt2img_prompt", "ti_txt2img_negative_prompt"];
    const KEEP = "textual-inversion-strength";
    let edited = PROMPTS[0]; // the prompt that was edited last
    let shown = null; // the folder's state that the cards on the page are from

    function box(id) {
        const found = document.getElementById(id);
        return found && (found.matches("textarea, input") ? found : found.querySelector("textarea, input"));
    }

    function escaped(text) { return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"); }

    // The word standing alone or as (word:1.2), <word> or <word:1.2>, with the comma or space that came along with it.
    function pattern(name) {
        const word = escaped(name);
        return new RegExp("(^|[\\s,(\\[])(?:\\(" + word + "(?::[^()]*)?\\)|<" + word + "(?::[^<>]*)?>|" + word + ")(?=$|[\\s,)\\]:.!?;])", "gi");
    }

    // Most of thousands of words are not in the text; one regular expression for each word at every key would be slow.
    ti.hasWord = (text, name) => text.toLowerCase().includes(name.toLowerCase()) && pattern(name).test(text);
    // The text to put between `before` and `after` so that the word stands alone there.
    ti.asWord = (word, before, after) => (/[^\s(\[<]$/.test(before) ? " " : "") + word + (/^[^\s),\].:;!?]/.test(after) ? " " : "");
    ti.withoutWord = function (text, name) {
        return text.replace(pattern(name), (whole, before) => (/[([]/.test(before) ? before : before === "," ? "," : ""))
            .replace(/ {2,}/g, " ").replace(/\s+,/g, ",").replace(/,\s*,/g, ",").trim().replace(/^,\s*/, "");
    };

    function set(field, value) {
        field.value = value;
        field.dispatchEvent(new Event("input", { bubbles: true }));
    }

    // Replaces a part of the field's text as if it were typed, so that Ctrl+Z takes it back; the focus stays where it was.
    function type(field, start, end, text) {
        const active = document.activeElement, was = edited;
        field.focus({ preventScroll: true });
        field.setSelectionRange(start, end);
        const typed = document.execCommand(text ? "insertText" : "delete", false, text);
        if (!typed) set(field, field.value.slice(0, start) + text + field.value.slice(end));
        if (active && active !== field && active.isConnected) active.focus({ preventScroll: true });
        edited = was;
    }

    ti.typeInto = type;

    // Names of the cards that fit and have `wanted` in their name; those that begin with it come first.
    ti.cardNames = function (wanted) {
        const grid = document.querySelector(".ti-cards");
        if (grid && !grid.dataset.read) search();
        const fits = cards.filter((card) => !card.unfit && card.name.includes(wanted));
        return fits.sort((one, other) => one.name.indexOf(wanted) - other.name.indexOf(wanted)).map((card) => card.node.firstElementChild.dataset.name);
    };

    // Puts the word where the cursor is, or behind the text of a field that was never used.
    function insert(field, word) {
        const used = field.dataset.tiUsed === "1";
        const [start, end] = used ? [field.selectionStart, field.selectionEnd] : [field.value.trimEnd().length, field.value.length];
        type(field, start, end, ti.asWord(word, field.value.slice(0, start), field.value.slice(end)));
    }

    function toggle(card) {
        const own = { positive: PROMPTS[0], negative: PROMPTS[1] }[card.dataset.prompt] || edited;
        const field = box(own) || box(PROMPTS[0]);
        if (!field || card.getAttribute("aria-disabled") === "true") return;
        const on = !ti.hasWord(field.value, card.dataset.name);
        put(field, card.dataset.name, on);
        if (card.dataset.negative) put(box(PROMPTS[1]), card.dataset.negative, on);
        press();
    }

    function put(field, name, on) {
        if (!field || ti.hasWord(field.value, name) === on) return;
        const strength = document.querySelector(".ti-strength");
        if (on) insert(field, strength && strength.checked ? "<" + name + ":1>" : name);
        else type(field, 0, field.value.length, ti.withoutWord(field.value, name));
    }

    // Puts the trained word into the prompt: the standalone page has both.
    const page = () => document.getElementById("ti_page_txt2img-button") || [...document.querySelectorAll("#ti_pages [role=tab]")].find((tab) => tab.textContent.trim() === "txt2img");
    ti.canTry = () => Boolean(page());
    ti.tryWord = function (state) {
        page().click();
        const drawn = (state.previews || []).map((preview) => preview.prompt).filter((prompt) => ti.hasWord(prompt, state.name)).pop();
        let tries = 0;
        (function fill() {
            const field = box(PROMPTS[0]);
            if (!field || !field.offsetParent) return tries++ < 20 ? setTimeout(fill, 100) : undefined; // gradio puts a tab on the page late
            const before = field.value;
            const word = () => { if (!ti.hasWord(field.value, state.name)) set(field, drawn || "a picture of " + state.name); press(); };
            word();
            field.focus();
            // and sets a new tab's fields once more to what they were drawn with
            for (const wait of [100, 300, 700, 1500]) setTimeout(() => { if (field.value === before) word(); }, wait);
        })();
    };

    // Cards whose word is in one of the prompts look pressed.
    function press() {
        const text = PROMPTS.map((id) => (box(id) || { value: "" }).value).join("\n");
        for (const card of document.querySelectorAll(".ti-card:not(.ti-unfit)")) {
            const pressed = String(ti.hasWord(text, card.dataset.name));
            if (card.getAttribute("aria-pressed") !== pressed) card.setAttribute("aria-pressed", pressed);
        }
    }

    const PAGE = 40; // cards on the page at a time; more appear as the shelf is scrolled
    const FILTERS = {
        all: () => true,
        fit: (card) => !card.unfit,
        good: (card) => card.level === "good",
        negative: (card) => card.negative,
    };
    const ORDERS = {
        fit: (one, other) => one.place - other.place,
        name: (one, other) => one.name.localeCompare(other.name, undefined, { numeric: true }),
        newest: (one, other) => other.changed - one.changed || one.place - other.place,
        steps: (one, other) => other.steps - one.steps || one.place - other.place,
    };
    let cards = []; // all of them, in the server's order
    let listed = []; // those that the search and the filter leave, in the chosen order

    function read(grid) {
        cards = [...grid.children].map((node, place) => {
            const button = node.firstElementChild, data = button.dataset;
            return { node, place, name: data.name.toLowerCase(), unfit: button.classList.contains("ti-unfit"), level: data.level,
                negative: data.prompt === "negative", changed: Number(data.changed), steps: Number(data.steps) };
        });
    }

    const chosen = (part, otherwise) => { const field = document.querySelector(part); return (field && field.value) || otherwise; };

    function search() {
        const shelf = document.querySelector(".ti-shelf"), grid = shelf && shelf.querySelector(".ti-cards");
        if (!grid) return;
        if (!grid.dataset.read) { read(grid); grid.dataset.read = "1"; }
        const wanted = chosen(".ti-search", "").trim().toLowerCase();
        const fits = FILTERS[chosen(".ti-filter", "all")] || FILTERS.all;
        listed = cards.filter((card) => card.name.includes(wanted) && fits(card)).sort(ORDERS[chosen(".ti-order", "fit")] || ORDERS.fit);
        shelf.scrollTop = 0; // before the cards change, because it would lay them out at once
        grid.replaceChildren(...listed.slice(0, PAGE).map((card) => card.node));
        shelf.classList.toggle("ti-nothing", cards.length > 0 && !listed.length);
        const count = document.querySelector(".ti-cardcount");
        if (count) count.textContent = listed.length === cards.length ? String(cards.length) : listed.length + " of " + cards.length;
        press();
    }

    // The next cards, when the last ones come into view.
    function more(shelf) {
        const grid = shelf.querySelector(".ti-cards"), there = grid ? grid.children.length : 0;
        if (!grid || there >= listed.length || shelf.scrollTop + shelf.clientHeight < shelf.scrollHeight - 400) return;
        grid.append(...listed.slice(there, there + PAGE).map((card) => card.node));
        press();
    }
    document.addEventListener("scroll", (event) => { if (event.target.matches && event.target.matches(".ti-shelf")) more(event.target); }, true);

    async function load(rescan) {
        const shelf = document.querySelector(".ti-shelf");
        if (!shelf) return;
        const answer = await fetch(ti.address("cards" + (rescan ? "?rescan=1" : "")), { cache: "no-store" });
        if (!answer.ok) return;
        shelf.innerHTML = (await answer.json()).html; // made and escaped by the server
        cards = [];
        search();
    }

    function follow(state) {
        const shelf = document.querySelector(".ti-shelf");
        if (!shelf || state.lost) return;
        const now = state.embeddings + "|" + state.checkpoint;
        if (shown === now && shelf.dataset.loaded) return;
        shown = now;
        shelf.dataset.loaded = "1";
        load(false).catch(() => { shown = null; });
    }

    document.addEventListener("click", (event) => {
        const at = event.target.closest ? event.target : null;
        if (!at) return;
        const card = at.closest(".ti-card");
        const refresh = at.closest(".ti-refresh");
        if (card) toggle(card);
        if (refresh) {
            refresh.classList.add("ti-turning");
            load(true).catch(() => { shown = null; }).finally(() => setTimeout(() => refresh.classList.remove("ti-turning"), 400));
        }
        if (at.closest("#ti_pages [role=tab]") && ti.hurry) ti.hurry(); // the cards on another tab are read when it is there
        if (at.matches(".ti-strength")) localStorage.setItem(KEEP, at.checked ? "1" : "");
    });
    for (const kind of ["focusin", "input"]) {
        document.addEventListener(kind, (event) => {
            const id = PROMPTS.find((name) => { const field = box(name); return field && field === event.target; });
            if (id) { edited = id; press(); event.target.dataset.tiUsed = "1"; }
            if (kind === "input" && event.target.matches && event.target.matches(".ti-search, .ti-filter, .ti-order")) search();
        });
    }
    function ready() {
        ti.listen(follow);
        ti.listen(() => {
            const strength = document.querySelector(".ti-strength:not([data-kept])");
            if (strength) { strength.dataset.kept = "1"; strength.checked = localStorage.getItem(KEEP) === "1"; }
        });
    }
    if (ti.listen) ready();
    else document.addEventListener("DOMContentLoaded", ready);
})();
