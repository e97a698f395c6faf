// What a keyboard needs where gradio does not give it: arrow keys between tabs, a focus that is never lost, lists that close.
(function () {
    "use strict";
    const ti = (window.textualInversion = window.textualInversion || {});
    if (ti.keys) return; // a page that loads the script twice listens once
    ti.keys = true;

    const STEPS = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };

    // Arrow keys go from tab to tab, as in every list of tabs; gradio 3 has buttons without that role.
    function goToTab(event) {
        const list = event.target.closest('#ti_pages [role="tablist"], #ti_tabs [role="tablist"], #ti_tabs .tab-nav');
        if (!list || !(event.key in STEPS)) return;
        const tabs = [...list.querySelectorAll("button")].filter((tab) => tab.offsetParent && tab.innerText.trim());
        const at = tabs.indexOf(event.target.closest("button"));
        if (at < 0) return;
        const to = Number.isFinite(STEPS[event.key]) ? (at + STEPS[event.key] + tabs.length) % tabs.length : event.key === "Home" ? 0 : tabs.length - 1;
        event.preventDefault();
        const name = tabs[to].innerText.trim(), root = list.closest("#ti_tabs, #ti_pages"); // the inner and the outer list may have the same names
        tabs[to].click();
        const settle = () => { // gradio may draw the list anew
            const now = [...root.querySelectorAll('[role="tab"], .tab-nav button')].find((tab) => tab.innerText.trim() === name && tab.closest("#ti_tabs, #ti_pages") === root);
            if (now) now.focus();
        };
        settle();
        setTimeout(settle, 80);
    }

    const listOf = (target) => (target.matches && target.matches("input") ? target.closest('[id^="ti_"]') : null);

    // gradio 6 lets go of the focus when a value is chosen from a list: it stays at the field, from where Tab goes on.
    function keepFocus(event) {
        const field = event.key === "Enter" && event.target.hasAttribute("aria-expanded") ? listOf(event.target) : null;
        if (!field) return;
        setTimeout(() => {
            if (document.activeElement !== document.body || !field.isConnected) return;
            field.tabIndex = -1;
            field.classList.add("ti-left-here");
            field.focus({ preventScroll: true });
        }, 150);
    }

    // gradio 6 opens the list once more when Tab leaves it; such a list covers what is below until it is left again.
    function closeList(event) {
        const box = event.target;
        if (!listOf(box) || !box.hasAttribute("aria-expanded")) return;
        setTimeout(() => {
            if (box !== document.activeElement && box.getAttribute("aria-expanded") === "true") box.dispatchEvent(new FocusEvent("blur"));
        }, 100);
    }

    document.addEventListener("keydown", (event) => {
        if (!event.target.closest || event.altKey || event.ctrlKey || event.metaKey) return;
        goToTab(event);
        keepFocus(event);
    });
    document.addEventListener("focusout", closeList);
})();
