//! The pickle machine: what it reads, and what it refuses by name.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

/// A pickle of these parts with a protocol in front.
fn pickle(parts: &[&[u8]]) -> Vec<u8> {
    [&[&b"\x80\x02"[..]], parts].concat().concat()
}

fn refusal(parts: &[&[u8]]) -> String {
    load(&pickle(parts)).expect_err("accepted")
}

/// A global opcode.
fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

#[test]
fn plain_values_and_aliases_read() {
    // {"a": [1, -2, 300, True, None, 0.5], "b": (same list, -1 as LONG1)}, through the memo.
    let body: &[&[u8]] = &[
        b"}q\x00(X\x01\x00\x00\x00a]q\x01(K\x01J\xfe\xff\xff\xffM\x2c\x01\x88NG\x3f\xe0\0\0\0\0\0\0e",
        b"X\x01\x00\x00\x00bh\x01\x8a\x01\xff\x86u.rest",
    ];
    let data = pickle(body);
    let (heap, root, used) = load(&data).unwrap();
    assert_eq!(&data[used..], b"rest");
    let list = heap.item(root, "a").unwrap();
    let want =
        [Value::Int(1), Value::Int(-2), Value::Int(300), Value::Bool(true), Value::None, Value::Float(0.5)];
    assert_eq!(heap.list(list).unwrap(), want);
    assert_eq!(heap.tuple(heap.item(root, "b").unwrap()).unwrap(), [list, Value::Int(-1)]);
}

#[test]
fn globals_other_than_tensors_are_refused_by_name() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch", "FancyStorage"),
        ("torch.cuda", "float32"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("collections", "defaultdict"),
        ("numpy.core.multiarray", "_reconstruct"),
    ] {
        let message = refusal(&[&global(module, name), b")R."]);
        assert!(message.contains(&format!("{module}.{name}")), "{message}");
        let text = |s: &str| [&[0x8c, s.len() as u8][..], s.as_bytes()].concat();
        let message = refusal(&[&text(module), &text(name), b"\x93)R."]);
        assert!(message.contains(&format!("{module}.{name}")), "{message}");
    }
}

#[test]
fn malformed_pickles_end_in_a_reason() {
    let ordered = global("collections", "OrderedDict");
    let rebuild = global("torch._utils", "_rebuild_tensor_v2");
    let float = global("torch", "FloatStorage");
    let cases: &[(&[&[u8]], &str)] = &[
        (&[b""], "ends in the middle"),
        (&[b"X\xff\xff\xff\xffa"], "ends in the middle"),
        (&[b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa"], "ends in the middle"),
        (&[b"."], "stack is empty"),
        (&[b"K\x01(."], "stack is empty"),
        (&[b"u."], "no mark"),
        (&[b"(K\x01d."], "a key without a value"),
        (&[b"K\x01K\x02a."], "append to Int(1)"),
        (&[b"K\x01(K\x02K\x03u."], "an item set in Int(1)"),
        (&[b"K\x01\x87."], "stack is empty"),
        (&[b"h\x05."], "nothing is remembered as 5"),
        (&[b"I1\n."], "opcode 0x49"),
        (&[b"(i__main__\nX\n."], "opcode 0x69"),
        (&[b"\x82\x01."], "opcode 0x82"),
        (&[&ordered, b")\x81."], "opcode 0x81"),
        (&[b"cos"], "does not end"),
        (&[b"X\x02\x00\x00\x00\xff\xfe."], "no UTF-8"),
        (&[b"K\x01)R."], "a call of Int(1)"),
        (&[&float, b")R."], "a call of Global(Storage"),
        (&[&ordered, b"K\x01\x85R."], "something other than pairs"),
        (&[&ordered, b"]K\x01a\x85R."], "something other than pairs"),
        (&[&rebuild, b")R."], "fewer than 4 arguments"),
        (&[&rebuild, b"(K\x01K\x01))tR."], "over Int(1), which is no storage"),
        (&[&global("torch._utils", "_rebuild_parameter"), b"K\x01\x85R."], "a parameter of something"),
        (&[b"K\x01Q."], "a persistent id that is no tuple"),
        (&[b"(X\x01\0\0\0xNNNNtQ."], "something other than a storage"),
        (&[b"(X\x07\0\0\0storageNNNNtQ."], "a storage of class None"),
        (&[b"(X\x07\0\0\0storage", &float, b"NNK\x01tQ."], "whose key is None"),
        (
            &[b"(X\x07\0\0\0storage", &float, b"X\x01\0\0\x000NJ\xff\xff\xff\xfftQ."],
            "a storage's length is Int(-1)",
        ),
        (&[b"K\x01}b."], "state set on Int(1)"),
    ];
    for (parts, part) in cases {
        let message = refusal(parts);
        assert!(message.starts_with("pickle, byte") && message.contains(part), "{parts:?}: {message}");
    }
}

#[test]
fn deep_nesting_neither_recurses_nor_grows_out_of_proportion() {
    let deep = pickle(&[b")", &[0x85; 1_000_000], b"."]);
    assert!(load(&deep).is_ok());
    let many = pickle(&[&vec![b'}'; MAX_PICKLE_OBJECTS + 1]]);
    assert!(load(&many).unwrap_err().contains("more than 4000000 objects"));
    let marks = pickle(&[&vec![b'('; MAX_PICKLE_OBJECTS + 1]]);
    assert!(load(&marks).unwrap_err().contains("more than 4000000 objects"));
    // One list of pairs made into a dictionary again and again: each copy counts.
    let pairs = b"K\x01K\x01\x86".repeat(100_000);
    let ordered = global("collections", "OrderedDict");
    let again = [&b"h\x00"[..], b"h\x01", b"R0"].concat().repeat(100);
    let list = [&b"]("[..], &pairs, b"e\x85q\x010"].concat();
    let message = refusal(&[&ordered, b"q\x000", &list, &again, b"N."]);
    assert!(message.contains("more than 4000000 objects"), "{message}");
}

#[test]
fn a_long_pickle_is_cut_at_the_bound() {
    let mut long = pickle(&[b"B"]);
    long.extend_from_slice(&(MAX_PICKLE_BYTES as u32 + 10).to_le_bytes());
    long.resize(MAX_PICKLE_BYTES as usize + 100, b'x');
    assert!(load(&long).unwrap_err().contains("it is longer than 33554432 bytes"));
}
