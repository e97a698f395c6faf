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
    ti.withWord = (text, insert) => (text.trim() ? text.replace(/\s+$/, "") + " " : "") + insert;
    ti.withoutWord = function (text, name) {
        return text.replace(pattern(name), (whole, before) => (/[([]/.test(before) ? before : before === "," ? "," : ""))
            .replace(/ {2,}/g, " ").replace(/\s+,/g, ",").replace(/,\s*,/g, ",").trim().replace(/^,\s*/, "");
    };

    function set(field, value) {
        field.value = value;
        field.dispatchEvent(new Event("input", { bubbles: true }));
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
        set(field, on ? ti.withWord(field.value, strength && strength.checked ? "<" + name + ":1>" : name) : ti.withoutWord(field.value, name));
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

    function search() {
        const field = document.querySelector(".ti-search");
        const wanted = (field ? field.value : "").trim().toLowerCase();
        let found = 0;
        for (const card of document.querySelectorAll(".ti-card")) {
            const fits = card.dataset.name.toLowerCase().includes(wanted);
            card.parentElement.hidden = !fits;
            found += fits;
        }
        const shelf = document.querySelector(".ti-shelf");
        if (shelf) shelf.classList.toggle("ti-nothing", Boolean(wanted) && !found);
    }

    async function load(rescan) {
        const shelf = document.querySelector(".ti-shelf");
        if (!shelf) return;
        const answer = await fetch(ti.address("cards" + (rescan ? "?rescan=1" : "")), { cache: "no-store" });
        if (!answer.ok) return;
        shelf.innerHTML = (await answer.json()).html; // made and escaped by the server
        search();
        press();
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
            if (id) { edited = id; press(); }
            if (kind === "input" && event.target.matches && event.target.matches(".ti-search")) search();
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
