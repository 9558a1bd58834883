//! Cutting, formats, compression, and what is said about text that is none.

use std::io::Write;

use proptest::prelude::*;

use super::*;

fn no_cut(_: &[u8]) -> Option<usize> {
    None
}

fn newline_cut(text: &[u8]) -> Option<usize> {
    text[..text.len() - 1].iter().rposition(|&b| b == b'\n').map(|at| at + 1)
}

/// The chunks of a file with this name and content.
fn chunks(name: &str, bytes: &[u8], cut: &(dyn Fn(&[u8]) -> Option<usize> + Sync)) -> Vec<Result<Chunk>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    Chunks::new(&[path], cut, Arc::default()).collect()
}

fn texts(name: &str, bytes: &[u8]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for chunk in chunks(name, bytes, &no_cut) {
        all.extend(chunk?.parts("text")?.into_iter().map(|p| p.text.into_owned()));
    }
    Ok(all)
}

#[test]
fn a_txt_is_one_document_and_a_jsonl_one_a_line() {
    assert_eq!(texts("a.txt", b"one\ntwo\n").unwrap(), ["one\ntwo\n"]);
    let lines = b"\xef\xbb\xbf{\"text\": \"one\"}\r\n\n  \n{\"id\": 1, \"text\": \"two\"}";
    assert_eq!(texts("a.jsonl", lines).unwrap(), ["one", "two"]);
    assert_eq!(texts("a.txt", b"").unwrap(), [""]);
    assert!(texts("a.jsonl", b"").unwrap().is_empty());
}

#[test]
fn compression_is_seen_by_its_first_bytes() {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(b"{\"text\": \"one\"}\n").unwrap();
    let gz = gz.finish().unwrap();
    assert_eq!(texts("a.jsonl.gz", &gz).unwrap(), ["one"]);
    assert_eq!(texts("a.jsonl", &[gz.clone(), gz.clone()].concat()).unwrap(), ["one", "one"], "members end to end");
    let zst = zstd::encode_all(&b"plain"[..], 1).unwrap();
    assert_eq!(texts("a.txt.zst", &[zst.clone(), zst.clone()].concat()).unwrap(), ["plainplain"]);
    for damaged in [&gz[..gz.len() - 9], &zst[..zst.len() - 3]] {
        let error = texts("a.txt", damaged).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("a.txt: damaged after"), "{error}");
    }
}

#[test]
fn long_texts_come_in_parts() {
    let text = "あいう\n".repeat(500_000);
    let parts: Vec<Chunk> = chunks("a.txt", text.as_bytes(), &newline_cut).into_iter().map(|c| c.unwrap()).collect();
    assert!(parts.len() > 3 && parts.iter().all(|c| c.size() <= SEGMENT));
    let flags = |c: &Chunk| (c.first, c.last);
    assert_eq!(flags(&parts[0]), (true, false));
    assert_eq!(flags(&parts[1]), (false, false));
    assert_eq!(flags(parts.last().unwrap()), (false, true));
    let joined: String = parts.iter().map(|c| c.parts("").unwrap()[0].text.to_string()).collect();
    assert_eq!(joined, text);
}

#[test]
fn what_cannot_be_cut_is_refused_before_it_fills_the_memory() {
    let endless = vec![b'x'; LONGEST + 1];
    let error = texts("a.txt", &endless).unwrap_err().to_string();
    assert!(error.contains("a.txt: the text from line 1 on"), "{error}");
    let error = texts("a.jsonl", &endless).unwrap_err().to_string();
    assert!(error.contains("a.jsonl: line 1 is longer than 64 MiB"), "{error}");
}

#[test]
fn other_encodings_are_named_with_place_and_remedy() {
    let error = texts("a.txt", b"abc\nde\x82\xa0\n").unwrap_err().to_string();
    assert!(error.contains("a.txt: line 2, byte 3 (offset 6 of the file): 0x82 is not UTF-8"), "{error}");
    assert!(error.contains("iconv -f SHIFT_JIS -t UTF-8"), "{error}");
    let error = texts("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\x82\xa0\"}\n").unwrap_err().to_string();
    assert!(error.contains("a.jsonl: line 2, byte 11 (offset 24 of the file)"), "{error}");
}

#[test]
fn bad_lines_are_named() {
    let error = texts("a.jsonl", b"{\"text\": \"a\"}\n\n{\"text\": \"b\"\n").unwrap_err().to_string();
    assert!(error.contains("a.jsonl: line 3: EOF"), "{error}");
    let error = texts("a.jsonl", b"{\"body\": \"a\"}\n").unwrap_err().to_string();
    assert!(error.contains("line 1: no key \"text\" (it has \"body\")"), "{error}");
    assert!(texts("a.csv", b"").unwrap_err().to_string().contains("should end in .txt or .jsonl"));
}

#[test]
fn shift_jis_files_of_aozora() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/aozora/raw_sample");
    let Ok(files) = std::fs::read_dir(&folder) else {
        eprintln!("skipped: {} is not here", folder.display());
        return;
    };
    for file in files {
        let path = [file.unwrap().path()];
        let chunk = Chunks::new(&path, &no_cut, Arc::default()).next().unwrap().unwrap();
        assert!(chunk.parts("text").unwrap_err().to_string().contains("iconv"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn any_bytes_are_text_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0usize..4) {
        let magic: [&[u8]; 4] = [b"", b"{\"text\": \"", b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd"];
        let bytes = [magic[kind], &bytes].concat();
        for name in ["a.txt", "a.jsonl"] {
            if let Err(e) = texts(name, &bytes) {
                prop_assert_eq!(e.exit_code(), 2, "{}", e);
            }
        }
    }
}
