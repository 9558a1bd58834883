//! Cutting, formats, compression, and the errors for input that is not text.

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
fn chunks(name: &str, bytes: &[u8], cut: Cut) -> Vec<Result<Chunk>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    Chunks::new(&inputs(path), cut, Arc::default()).collect()
}

fn inputs(path: PathBuf) -> Inputs {
    Inputs { paths: vec![path], format: None, key: "text".into() }
}

/// A visitor that keeps every document.
fn keep(documents: &mut Vec<String>) -> impl FnMut(&str) -> Result<()> {
    |text| {
        documents.push(text.to_string());
        Ok(())
    }
}

/// Every text, or the first error.
fn texts(name: &str, bytes: &[u8]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for chunk in chunks(name, bytes, &no_cut) {
        let chunk = chunk?;
        let texts = chunk.parts("text").into_iter().map(|p| p.text.map(|text| text.into_owned()));
        all.extend(texts.collect::<std::result::Result<Vec<_>, _>>().map_err(Error::user)?);
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
    let joined = b"{\"text\": \"one\"}\n\xef\xbb\xbf{\"text\": \"two\"}\n\xef\xbb\xbf\n";
    assert_eq!(texts("A.JSONL", joined).unwrap(), ["one", "two"], "files with byte-order marks, joined");
    assert_eq!(texts("A.Txt", b"one").unwrap(), ["one"]);
}

/// A pipe is recognized by its file type, and its format by its first byte.
#[test]
fn pipes_need_no_ending() {
    let folder = tempfile::tempdir().unwrap();
    for (bytes, expected) in [
        (&b"\xef\xbb\xbf \n\n {\"text\": \"one\"}\n{\"text\": \"two\"}\n"[..], &["one", "two"][..]),
        (b"[not JSON lines]\n", &["[not JSON lines]\n"]),
        (b"", &[""]),
    ] {
        let path = folder.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let inputs = inputs(path.clone());
        assert_eq!(inputs.check().unwrap(), 0);
        let writer = std::thread::spawn({
            let (path, bytes) = (path.clone(), bytes.to_vec());
            move || std::fs::write(path, bytes).unwrap()
        });
        let mut documents = Vec::new();
        inputs.for_each_document(keep(&mut documents)).unwrap();
        writer.join().unwrap();
        assert_eq!(documents, expected);
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn unusual_endings_take_a_format() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("corpus.zstd");
    std::fs::write(&path, zstd::encode_all(&b"{\"text\": \"one\"}\n"[..], 1).unwrap()).unwrap();
    let mut inputs = inputs(path);
    let error = inputs.check().unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("--input-format jsonl"), "{error}");
    inputs.format = Some(Format::JsonLines);
    let mut documents = Vec::new();
    inputs.for_each_document(keep(&mut documents)).unwrap();
    assert_eq!(documents, ["one"]);
    std::fs::write(&inputs.paths[0], b"\xfd7zXZ\0rest").unwrap();
    let error = inputs.for_each_document(|_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("compressed with xz") && error.contains("--input -"), "{error}");
    inputs.paths = vec!["-".into(), "-".into()];
    assert!(inputs.check().unwrap_err().to_string().contains("read only once"));
}

#[test]
fn documents_come_whole_however_long() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.txt");
    let text = "あいう".repeat(700_000);
    std::fs::write(&path, &text).unwrap();
    let mut documents = Vec::new();
    inputs(path).for_each_document(keep(&mut documents)).unwrap();
    assert!(documents == [text]);
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
    // pzstd begins its files with a frame to be skipped, which holds the size of the next one.
    let skipped = [&0x184d_2a50u32.to_le_bytes()[..], &4u32.to_le_bytes(), &(zst.len() as u32).to_le_bytes()].concat();
    let frames = [&skipped[..], &zst, &skipped, &zst].concat();
    assert_eq!(texts("a.txt.zst", &frames).unwrap(), ["plainplain"]);
    assert_eq!(texts("a.txt.ZST", &skipped).unwrap(), [""]);
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
    let joined: String = parts.iter().map(|c| c.parts("")[0].text.clone().unwrap().to_string()).collect();
    assert_eq!(joined, text);
}

#[test]
fn what_cannot_be_cut_is_refused_before_it_fills_the_memory() {
    let endless = vec![b'x'; LONGEST_LINE + 1];
    let error = texts("a.txt", &endless).unwrap_err().to_string();
    assert!(error.contains("a.txt: from line 1 on: a text of 16.0 MiB in which"), "{error}");
    let lines = [b"{\"text\": \"one\"}\n", &endless[..], b"\n\n{\"text\": \"two\"}\n{\"text\": 3}"].concat();
    let error = texts("a.jsonl", &lines).unwrap_err().to_string();
    assert!(error.contains("a.jsonl: line 2 is longer than 64 MiB"), "{error}");
    // The reader goes on with the next line and its right number.
    let chunks: Vec<Chunk> = chunks("a.jsonl", &lines, &no_cut).into_iter().map(|c| c.unwrap()).collect();
    let parts: Vec<_> = chunks.iter().flat_map(|c| c.parts("text")).map(|p| (p.line, p.text.ok())).collect();
    assert_eq!(parts, [(1, Some("one".into())), (2, None), (4, Some("two".into())), (5, None)]);
}

#[test]
fn other_encodings_are_named_with_place_and_remedy() {
    let error = texts("a.txt", b"abc\nde\x82\xa0\n").unwrap_err().to_string();
    assert!(error.contains("a.txt: line 2, byte 3 (offset 6 of the file): 0x82 is not UTF-8"), "{error}");
    assert!(error.contains("iconv -f SHIFT_JIS -t UTF-8"), "{error}");
    let error = texts("a.jsonl", b"\xff\xfe{\0\"\0").unwrap_err().to_string();
    assert!(error.contains("iconv -f UTF-16 -t UTF-8"), "{error}");
    let error = texts("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\x82\xa0\"}\n").unwrap_err().to_string();
    assert!(error.contains("a.jsonl: line 2, byte 11 (offset 24 of the file)"), "{error}");
}

#[test]
fn bad_lines_are_named() {
    let error = texts("a.jsonl", b"{\"text\": \"a\"}\n\n{\"text\": \"b\"\n").unwrap_err().to_string();
    assert!(error.contains("a.jsonl: line 3: is not a JSON object (EOF"), "{error}");
    let error = texts("a.jsonl", b"{\"body\": \"a\"}\n").unwrap_err().to_string();
    assert!(error.contains("line 1: no key \"text\" (it has \"body\")"), "{error}");
    let error = texts("a.jsonl", b"[\n{\"text\": \"a\"}\n]\n").unwrap_err().to_string();
    assert!(error.contains("a.jsonl: line 1: ") && error.contains("jq -c"), "{error}");
    let error = texts("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"cut \\ud83d\"}\n").unwrap_err().to_string();
    assert!(error.contains("a.jsonl: line 2: a lone surrogate"), "{error}");
    assert!(texts("a.csv", b"").unwrap_err().to_string().contains("should end in .txt or .jsonl"));
}

#[test]
fn shift_jis_files_of_aozora() {
    let folder = super::super::checkout().join("../shared/data/aozora/raw_sample");
    let Ok(files) = std::fs::read_dir(&folder) else {
        eprintln!("skipped: there is no {}", folder.display());
        return;
    };
    for file in files {
        let inputs = inputs(file.unwrap().path());
        let chunk = Chunks::new(&inputs, &no_cut, Arc::default()).next().unwrap().unwrap();
        assert!(chunk.parts("text")[0].text.as_ref().unwrap_err().contains("iconv"));
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
