// Polls the state of the running job and passes it to the listeners that draw it. Finds gradio components by id only.
(function () {
    "use strict";
    const ti = (window.textualInversion = window.textualInversion || {});
    if (ti.poll) return; // a page that loads the script twice polls once

    const SLOW = 4000, QUICK = 1000, LONGEST = 20000;
    const OVER = ["idle", "finished", "interrupted", "failed"];
    const listeners = [];
    let last = null; // the newest complete state
    let shown = null; // the state that the form's lists and notes were drawn from
    let timer = 0, failures = 0, quickUntil = 0, inFlight = false;

    ti.listen = (listener) => { listeners.push(listener); if (last) listener(last, true); };
    ti.state = () => last;
    ti.busy = (state) => Boolean(state && state.kind) && !OVER.includes(state.phase); // without a kind there is no job
    ti.address = (path) => new URL("textual-inversion/" + path, document.baseURI).href;

    // An element with attributes, text and children; text is never taken for HTML.
    ti.el = function (tag, attributes, ...children) {
        const svg = ["svg", "path", "line", "text", "g", "circle", "rect"].includes(tag);
        const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
        for (const [key, value] of Object.entries(attributes || {})) {
            if (value === null || value === undefined || value === false) continue;
            if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
            else node.setAttribute(key, value === true ? "" : value);
        }
        for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
        return node;
    };

    // gradio 3 puts an id on two nested nodes; the button is one of them or inside.
    ti.press = function (id) {
        const found = document.getElementById(id);
        const button = found && (found.matches("button") ? found : found.querySelector("button"));
        if (button) button.click();
        return Boolean(button);
    };

    // Asks the server for another step's vectors; gradio reads the text before it hears the click.
    ti.exchange = function (asked) {
        const box = document.querySelector("#ti_exchange_sent textarea, #ti_exchange_sent input");
        if (!box) return;
        box.value = JSON.stringify(asked);
        box.dispatchEvent(new Event("input", { bubbles: true }));
        setTimeout(() => { ti.press("ti_exchange"); ti.hurry(); }, 60);
    };
    document.addEventListener("click", (event) => {
        const button = event.target.closest && event.target.closest(".ti-takeback");
        if (button) ti.exchange({ back: button.dataset.name });
    });

    ti.hurry = function () { quickUntil = Date.now() + 12000; schedule(150); };

    function schedule(wait) {
        clearTimeout(timer);
        timer = setTimeout(poll, wait);
    }

    function onPage() {
        return document.querySelector(".ti-live, .ti-pill, .ti-library") !== null;
    }

    async function poll() {
        if (document.hidden || inFlight) return schedule(SLOW);
        if (!onPage()) return schedule(QUICK);
        inFlight = true;
        try {
            const since = last ? last.job + "-" + last.version : "";
            const answer = await fetch(ti.address("state?since=" + encodeURIComponent(since)), { cache: "no-store" });
            if (!answer.ok) throw new Error("status " + answer.status);
            take(await answer.json());
            failures = 0;
        } catch (error) {
            failures += 1;
            if (failures === 2) tell(Object.assign({}, last || {}, { lost: true }), true);
        }
        inFlight = false;
        const drawing = last && last.drawing && last.drawing.busy;
        const quick = ti.busy(last) || drawing || Date.now() < quickUntil;
        schedule(failures ? Math.min(QUICK * 2 ** failures, LONGEST) : drawing || Date.now() < quickUntil ? QUICK / 2 : quick ? QUICK : SLOW);
    }
    ti.poll = poll;

    function take(state) {
        const before = last;
        if (!("points" in state)) state = Object.assign({}, before, state);
        last = state;
        const changed = !before || before.job !== state.job || before.version !== state.version || failures > 0;
        tell(state, changed);
        refresh(state);
    }

    // The server draws the form once at its start, in a WebUI without the list of names. So the form is refreshed for a new page, new files, another checkpoint and the end of a job.
    function refresh(state) {
        const now = [state.embeddings, state.checkpoint, state.job, ti.busy(state)].join("|");
        if (now !== shown && ti.press("ti_train_refresh")) shown = now;
    }

    function tell(state, changed) {
        for (const listener of listeners) listener(state, changed);
    }

    // Highlights each field that a note refers to, with the note's sentence beside it; a group that folds the field away is opened.
    function markFaults() {
        const notes = [...document.querySelectorAll(".ti-note[data-field]")];
        const faults = new Map(notes.map((note) => [note.dataset.field, note]));
        for (const field of document.querySelectorAll(".ti-fault")) if (!faults.has(field.id)) { field.classList.remove("ti-fault"); delete field.dataset.fault; }
        for (const [id, note] of faults) {
            const field = document.getElementById(id);
            if (field && field.offsetParent) mark(field, note);
            else if (!note.dataset.opened) { note.dataset.opened = "1"; open(note.dataset.group); setTimeout(markFaults, 300); }
        }
    }
    function mark(field, note) {
        if (field.classList.contains("ti-fault") && field.dataset.fault === note.innerText) return;
        field.classList.add("ti-fault");
        field.dataset.fault = note.innerText; // the style sheet draws it
        const box = field.getBoundingClientRect();
        if (box.top < 0 || box.bottom > window.innerHeight) field.scrollIntoView({ block: "center" });
    }
    function open(title) {
        const button = title && [...document.querySelectorAll(".ti-group .label-wrap, .ti-group button")].find((each) => each.innerText.trim().startsWith(title));
        if (button) button.click();
    }
    function watchForms() {
        const forms = document.querySelector(".ti-forms");
        if (!forms) return setTimeout(watchForms, QUICK); // a WebUI draws its tabs after the scripts
        new MutationObserver(markFaults).observe(forms, { childList: true, subtree: true });
    }

    document.addEventListener("visibilitychange", () => { if (!document.hidden) schedule(0); });
    document.addEventListener("click", (event) => {
        if (event.target.closest && event.target.closest("#ti_train_button, #ti_preprocess_button, #ti_look_button, #ti_train_stop, #ti_generate, #ti_create_button, #ti_check_button")) ti.hurry();
    }, true);
    // gradio 3 reads the text of a dropdown on keyup only. Text pasted with the mouse would be shown but not used, so send a keyup.
    document.addEventListener("focusout", (event) => {
        if (event.target.matches("#ti_train_name input, #ti_create_num_vectors input")) event.target.dispatchEvent(new KeyboardEvent("keyup", { bubbles: true }));
    });
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", () => schedule(200));
    else schedule(200);
    watchForms();
})();
