// What travels inside the page: deflated, in base64. The browser itself unpacks it.

async function unpack(id) {
  const node = document.getElementById(id);
  const binary = atob(node.textContent.trim());
  node.remove(); // two megabytes of text that nothing reads again
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}

async function unpackData() {
  const page = JSON.parse(await unpack("packed-data"));
  // Columns to one object a point: the rest of the page thinks in points.
  const columns = page.points;
  page.points = columns.point.map((_, i) => {
    const point = { i, bench: {} };
    for (const [name, values] of Object.entries(columns)) point[name] = values[i];
    point.curve = page.curves[i];
    point.layers = point.structure === null ? null : page.structures[point.structure];
    return point;
  });
  for (const [i, setting, numbers] of page.bench) page.points[i].bench[setting] = numbers;
  return page;
}

async function unpackPlotly() {
  const script = document.createElement("script");
  script.textContent = await unpack("packed-plotly"); // allowed by its hash in the page's policy
  document.head.append(script);
  if (!window.Plotly) throw new Error("the browser refused to run the figure library that is packed into this page");
}
