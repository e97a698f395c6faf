// A click on a WebUI's card whose word holds characters that the WebUI's own click would take for a regular expression.
(function () {
    "use strict";
    const ti = (window.textualInversion = window.textualInversion || {});

    function toggle(area, text) {
        const separator = (window.opts && window.opts.extra_networks_add_text_separator) || " ";
        const found = [separator + text, text].find((part) => area.value.includes(part));
        area.value = found ? area.value.split(found).join("") : area.value + separator + text;
        window.updateInput(area);
    }

    // Puts the texts into the prompts of the tab, or takes them out again.
    ti.insert = function (tab, text, negativeText) {
        const area = (kind) => window.gradioApp().querySelector(`#${tab}_${kind} > label > textarea`);
        const active = !negativeText && window.activePromptTextarea && window.activePromptTextarea[tab];
        toggle(active || area("prompt"), text);
        if (negativeText) toggle(area("neg_prompt"), negativeText);
    };
})();
