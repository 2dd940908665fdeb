#![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
use super::*;

/// Returns the file that a mirror serves under this name, if there is one.
fn answer(folder: &Path, name: &str) -> Option<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let response = serve_file(Arc::new(Files::of(Some(folder.to_owned()))), name.to_owned()).await;
        let found = response.status() == StatusCode::OK;
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        found.then(|| bytes.to_vec())
    })
}

#[test]
fn mirror_serves_kept_inputs_and_published_images_by_hash() {
    let folder = std::env::temp_dir().join(format!("openrelay-served-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let hash = |bytes: &[u8]| openrelay_image::hex(&openrelay_image::sha256(bytes));
    let (input, image, longer) = (hash(b"an input"), hash(b"an image"), hash(b"longer"));
    std::fs::write(folder.join(&input), "an input").unwrap();
    std::fs::write(folder.join(format!("{image}.json")), "its manifest").unwrap();
    std::fs::write(folder.join(format!("{image}.efi")), "an image").unwrap();
    assert_eq!(answer(&folder, &input).unwrap(), b"an input");
    assert_eq!(answer(&folder, &image).unwrap(), b"an image");
    // It serves no file whose name another hash begins, none that has changed, and nothing by another name.
    std::fs::write(folder.join(format!("{longer}0")), "longer").unwrap();
    std::fs::write(folder.join(&input), "an inpuT").unwrap();
    for name in [longer.as_str(), &input, "", "..", "../x"] {
        assert_eq!(answer(&folder, name), None, "{name}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}
