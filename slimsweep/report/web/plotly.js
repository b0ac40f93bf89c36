// The figure library, once it is unpacked; undefined before.

/** @returns {any} */
export const plotly = () => /** @type {any} */ (window).Plotly;
