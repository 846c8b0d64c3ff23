// Ways to give videos: the button, a drop anywhere on the page, a paste.

const DRAGGED = "is-dragged-over";

export function takeFiles(onFiles) {
  const input = document.getElementById("files");
  const area = document.getElementById("drop");
  document.getElementById("choose").addEventListener("click", () => input.click());
  area.addEventListener("click", (event) => {
    if (event.target === area) input.click();
  });
  input.addEventListener("change", () => {
    give(input.files);
    input.value = ""; // the same file may be chosen again
  });
  addEventListener("paste", (event) => give(event.clipboardData?.files ?? []));
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    area.classList.add(DRAGGED);
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) area.classList.remove(DRAGGED);
  });
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    area.classList.remove(DRAGGED);
    give(event.dataTransfer.files);
  });

  function give(files) {
    if (files.length) onFiles([...files]);
  }
}

function hasFiles(event) {
  return [...(event.dataTransfer?.types ?? [])].includes("Files");
}
