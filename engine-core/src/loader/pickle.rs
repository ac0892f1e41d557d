//! A pickle machine that knows tensor storages and nothing else. No code runs: of all globals only the few that
//! torch writes around tensors are understood, as data; any other is refused by its name.
//!
//! Bounds: the pickle's length, the number of values ever pushed, and that no object nests another by value
//! (objects are indices into one heap), so neither reading nor dropping recurses.

use std::collections::HashMap;

use super::FileDType;
use crate::limits::{MAX_PICKLE_BYTES, MAX_PICKLE_OBJECTS, MAX_TENSOR_RANK};

/// Most arguments of a call that is understood.
const MAX_ARGUMENTS: usize = 16;

/// Result whose error is a reason to put behind a file's name.
pub(super) type Reason<T> = std::result::Result<T, String>;

/// A value; containers are indices into the [`Heap`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(u32),
    /// A whole number wider than an i64, or raw bytes.
    Bytes(u32),
    Tuple(u32),
    List(u32),
    Dict(u32),
    Storage(u32),
    Tensor(u32),
    Global(Global),
}

/// The globals that are understood.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    /// `_rebuild_tensor` and `_v2`: the storage knows the dtype.
    RebuildTensor,
    /// `_v3`: an argument says the dtype.
    RebuildTensorTyped,
    RebuildParameter,
    /// A storage class; untyped ones count bytes.
    Storage(Option<FileDType>),
    Dtype(FileDType),
}

/// A storage as its persistent id describes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct StorageRef {
    /// A text: a copy of the key in every reference would let a small file ask for much memory.
    pub key: Value,
    /// `None`: the tensor says.
    pub dtype: Option<FileDType>,
    /// Elements, or bytes of an untyped storage.
    pub len: u64,
    /// Older files: this storage starts so many elements into the one called `key`.
    pub view_at: u64,
}

/// A tensor over a storage; offset and strides in elements.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorRef {
    pub storage: StorageRef,
    pub dtype: FileDType,
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

/// Everything a pickle made.
#[derive(Debug, Default)]
pub(super) struct Heap {
    texts: Vec<String>,
    bytes: Vec<Vec<u8>>,
    sequences: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: Vec<StorageRef>,
    tensors: Vec<TensorRef>,
}

impl Heap {
    pub fn text(&self, v: Value) -> Option<&str> {
        match v {
            Value::Text(i) => Some(&self.texts[i as usize]),
            _ => None,
        }
    }
    pub fn bytes(&self, v: Value) -> Option<&[u8]> {
        match v {
            Value::Bytes(i) => Some(&self.bytes[i as usize]),
            _ => None,
        }
    }
    pub fn list(&self, v: Value) -> Option<&[Value]> {
        match v {
            Value::List(i) => Some(&self.sequences[i as usize]),
            _ => None,
        }
    }
    pub fn dict(&self, v: Value) -> Option<&[(Value, Value)]> {
        match v {
            Value::Dict(i) => Some(&self.dicts[i as usize]),
            _ => None,
        }
    }
    pub fn tensor(&self, v: Value) -> Option<&TensorRef> {
        match v {
            Value::Tensor(i) => Some(&self.tensors[i as usize]),
            _ => None,
        }
    }
    /// Every storage named by a persistent id.
    pub fn storages(&self) -> &[StorageRef] {
        &self.storages
    }
    /// The value a dictionary has for a text key.
    pub fn item(&self, dict: Value, key: &str) -> Option<Value> {
        let items = self.dict(dict)?;
        items.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, v)| *v)
    }

    fn new_text(&mut self, text: &[u8]) -> Reason<Value> {
        let text = std::str::from_utf8(text).map_err(|_| "pickle: a string is no UTF-8".to_owned())?;
        Ok(Value::Text(put(&mut self.texts, text.to_owned())))
    }
    fn tuple(&self, v: Value) -> Option<&[Value]> {
        match v {
            Value::Tuple(i) => Some(&self.sequences[i as usize]),
            _ => None,
        }
    }
}

/// Runs one pickle from the start of `data`. Returns what it made, the value it ends with, and its length.
///
/// # Errors
/// A reason that names the byte, and the global or opcode that is refused.
pub(super) fn load(data: &[u8]) -> Reason<(Heap, Value, usize)> {
    let mut machine = Machine::new(&data[..data.len().min(MAX_PICKLE_BYTES as usize)]);
    loop {
        let at = machine.at;
        match machine.step().map_err(|reason| format!("pickle, byte {at}: {reason}"))? {
            Some(root) => return Ok((machine.heap, root, machine.at)),
            None => continue,
        }
    }
}

struct Machine<'a> {
    data: &'a [u8],
    at: usize,
    heap: Heap,
    stack: Vec<Value>,
    /// Stack heights at each open mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    pushes: usize,
}

impl<'a> Machine<'a> {
    fn new(data: &'a [u8]) -> Self {
        let (stack, marks) = (Vec::new(), Vec::new());
        Machine { data, at: 0, heap: Heap::default(), stack, marks, memo: HashMap::new(), pushes: 0 }
    }

    /// One opcode; the final value at its STOP.
    fn step(&mut self) -> Reason<Option<Value>> {
        let opcode = self.bytes(1)?[0];
        match opcode {
            b'.' => return self.pop().map(Some),
            0x80 => drop(self.bytes(1)?),
            0x95 => drop(self.bytes(8)?),
            b'(' => self.mark()?,
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'N' => self.push(Value::None)?,
            0x88 | 0x89 => self.push(Value::Bool(opcode == 0x88))?,
            b'J' | b'K' | b'M' | 0x8a | b'G' => self.number(opcode)?,
            b'X' | 0x8c | 0x8d | b'U' | b'T' | b'C' | b'B' => self.string(opcode)?,
            b']' | b'l' | b'a' | b'e' => self.list_op(opcode)?,
            b')' | b't' | 0x85..=0x87 => self.tuple_op(opcode)?,
            b'}' | b'd' | b's' | b'u' => self.dict_op(opcode)?,
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memo_op(opcode)?,
            b'c' | 0x93 => self.global(opcode)?,
            b'Q' => self.persistent()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            _ => return Err(format!("opcode 0x{opcode:02x} is none of those that tensors are saved with")),
        }
        Ok(None)
    }

    fn bytes(&mut self, n: usize) -> Reason<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|e| *e <= self.data.len());
        let end = end.ok_or_else(|| match self.data.len() as u64 {
            MAX_PICKLE_BYTES => format!("it is longer than {MAX_PICKLE_BYTES} bytes, the most that is read"),
            _ => "it ends in the middle (truncated file?)".to_owned(),
        })?;
        let bytes = &self.data[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    /// A little-endian length of `n` bytes.
    fn length(&mut self, n: usize) -> Reason<usize> {
        let value = self.bytes(n)?.iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
        usize::try_from(value).map_err(|_| format!("a length of {value}"))
    }

    fn push(&mut self, v: Value) -> Reason<()> {
        self.count()?;
        self.stack.push(v);
        Ok(())
    }

    fn count(&mut self) -> Reason<()> {
        self.pushes += 1;
        match self.pushes > MAX_PICKLE_OBJECTS {
            true => Err(format!("it makes more than {MAX_PICKLE_OBJECTS} objects")),
            false => Ok(()),
        }
    }

    fn mark(&mut self) -> Reason<()> {
        self.count()?;
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// The lowest stack height the current mark allows to pop to.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Reason<Value> {
        match self.stack.len() > self.floor() {
            true => self.stack.pop().ok_or_else(empty),
            false => Err(empty()),
        }
    }

    fn top(&self) -> Reason<Value> {
        match self.stack.len() > self.floor() {
            true => self.stack.last().copied().ok_or_else(empty),
            false => Err(empty()),
        }
    }

    /// Everything above the last mark.
    fn pop_mark(&mut self) -> Reason<Vec<Value>> {
        let mark = self.marks.pop().ok_or("there is no mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn number(&mut self, opcode: u8) -> Reason<()> {
        let value = match opcode {
            b'K' => Value::Int(self.length(1)? as i64),
            b'M' => Value::Int(self.length(2)? as i64),
            b'J' => Value::Int(i64::from(self.length(4)? as u32 as i32)),
            b'G' => {
                let bits = self.bytes(8)?.iter().fold(0u64, |v, b| v << 8 | u64::from(*b));
                Value::Float(f64::from_bits(bits))
            }
            _ => {
                let n = self.length(1)?;
                let bytes = self.bytes(n)?;
                match n {
                    0..=8 => Value::Int(signed(bytes)),
                    _ => Value::Bytes(put(&mut self.heap.bytes, bytes.to_vec())),
                }
            }
        };
        self.push(value)
    }

    fn string(&mut self, opcode: u8) -> Reason<()> {
        let n = match opcode {
            0x8c | b'U' | b'C' => self.length(1)?,
            0x8d => self.length(8)?,
            _ => self.length(4)?,
        };
        let text = self.bytes(n)?;
        let value = match opcode {
            b'C' | b'B' => Value::Bytes(put(&mut self.heap.bytes, text.to_vec())),
            _ => self.heap.new_text(text)?,
        };
        self.push(value)
    }

    fn list_op(&mut self, opcode: u8) -> Reason<()> {
        let items = match opcode {
            b']' => return self.new_sequence(Vec::new(), Value::List),
            b'l' => {
                let items = self.pop_mark()?;
                return self.new_sequence(items, Value::List);
            }
            b'a' => vec![self.pop()?],
            _ => self.pop_mark()?,
        };
        match self.top()? {
            Value::List(i) => self.heap.sequences[i as usize].extend(items),
            other => return Err(format!("append to {other:?}")),
        }
        Ok(())
    }

    fn tuple_op(&mut self, opcode: u8) -> Reason<()> {
        let items = match opcode {
            b')' => Vec::new(),
            b't' => self.pop_mark()?,
            _ => {
                let n = usize::from(opcode - 0x84);
                let from = self.stack.len().checked_sub(n).filter(|at| *at >= self.floor());
                self.stack.split_off(from.ok_or_else(empty)?)
            }
        };
        self.new_sequence(items, Value::Tuple)
    }

    fn new_sequence(&mut self, items: Vec<Value>, kind: fn(u32) -> Value) -> Reason<()> {
        let i = put(&mut self.heap.sequences, items);
        self.push(kind(i))
    }

    fn dict_op(&mut self, opcode: u8) -> Reason<()> {
        let items = match opcode {
            b'}' => Vec::new(),
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_mark()?,
        };
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("a key without a value".to_owned());
        }
        let pairs = pairs.iter().map(|[k, v]| (*k, *v));
        if matches!(opcode, b'}' | b'd') {
            let i = put(&mut self.heap.dicts, pairs.collect());
            return self.push(Value::Dict(i));
        }
        match self.top()? {
            Value::Dict(i) => self.heap.dicts[i as usize].extend(pairs),
            other => return Err(format!("an item set in {other:?}")),
        }
        Ok(())
    }

    fn memo_op(&mut self, opcode: u8) -> Reason<()> {
        let slot = match opcode {
            b'q' | b'h' => self.length(1)?,
            b'r' | b'j' => self.length(4)?,
            _ => self.memo.len(),
        } as u32;
        if matches!(opcode, b'h' | b'j') {
            let v = *self.memo.get(&slot).ok_or_else(|| format!("nothing is remembered as {slot}"))?;
            return self.push(v);
        }
        self.count()?;
        let v = self.top()?;
        self.memo.insert(slot, v);
        Ok(())
    }

    fn global(&mut self, opcode: u8) -> Reason<()> {
        let known = if opcode == b'c' {
            let (module, name) = (self.line()?, self.line()?);
            known_global(module, name)?
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (self.heap.text(module), self.heap.text(name)) {
                (Some(module), Some(name)) => known_global(module, name)?,
                _ => return Err("a global whose name is no string".to_owned()),
            }
        };
        self.push(Value::Global(known))
    }

    /// Text up to the next line feed.
    fn line(&mut self) -> Reason<&'a str> {
        let rest = &self.data[self.at..];
        let n = rest.iter().take(1024).position(|b| *b == b'\n').ok_or("a global's name does not end")?;
        self.at += n + 1;
        std::str::from_utf8(&rest[..n]).map_err(|_| "a global's name is no UTF-8".to_owned())
    }

    /// `('storage', class, key, location, length)`, in older files with a view at the end.
    fn persistent(&mut self) -> Reason<()> {
        let id = self.pop()?;
        let fields = self.heap.tuple(id).ok_or("a persistent id that is no tuple")?;
        let (&[tag, class, key, _, len], rest) =
            fields.split_first_chunk::<5>().ok_or("a persistent id of fewer than 5 fields")?;
        if self.heap.text(tag) != Some("storage") {
            return Err("a persistent id of something other than a storage".to_owned());
        }
        let Value::Global(Global::Storage(dtype)) = class else {
            return Err(format!("a storage of class {class:?}"));
        };
        let view_at = match rest.first().and_then(|view| self.heap.tuple(*view)) {
            Some(&[_, offset, _]) => whole(offset, "a storage view's offset")?,
            Some(_) => return Err("a storage view that has not 3 fields".to_owned()),
            None => 0,
        };
        if self.heap.text(key).is_none() {
            return Err(format!("a storage whose key is {key:?}; a string is wanted"));
        }
        let storage = StorageRef { key, dtype, len: whole(len, "a storage's length")?, view_at };
        let i = put(&mut self.heap.storages, storage);
        self.push(Value::Storage(i))
    }

    /// A call, of which only those that make dictionaries and tensors are understood.
    fn reduce(&mut self) -> Reason<()> {
        let (args, callee) = (self.pop()?, self.pop()?);
        let args = self.heap.tuple(args).filter(|args| args.len() <= MAX_ARGUMENTS);
        let args = args.ok_or("a call whose arguments are no tuple, or too many")?.to_vec();
        let made = match callee {
            Value::Global(Global::OrderedDict) => self.ordered_dict(&args)?,
            Value::Global(Global::RebuildTensor) => self.rebuild(&args, false)?,
            Value::Global(Global::RebuildTensorTyped) => self.rebuild(&args, true)?,
            Value::Global(Global::RebuildParameter) => match args.first() {
                Some(tensor @ Value::Tensor(_)) => *tensor,
                _ => return Err("a parameter of something other than a tensor".to_owned()),
            },
            other => return Err(format!("a call of {other:?}")),
        };
        self.push(made)
    }

    fn ordered_dict(&mut self, args: &[Value]) -> Reason<Value> {
        let pairs = match args {
            [] => Vec::new(),
            [list @ Value::List(_)] => {
                let items = self.heap.list(*list).unwrap_or_default();
                let pair = |v: &Value| match *v {
                    Value::Tuple(i) | Value::List(i) => match self.heap.sequences[i as usize][..] {
                        [key, value] => Some((key, value)),
                        _ => None,
                    },
                    _ => None,
                };
                let pairs: Option<Vec<_>> = items.iter().map(pair).collect();
                pairs.ok_or("an OrderedDict of something other than pairs")?
            }
            _ => return Err("an OrderedDict of something other than pairs".to_owned()),
        };
        // The pairs are copied, so that one list used many times cannot grow the heap out of proportion.
        self.pushes += pairs.len();
        self.count()?;
        Ok(Value::Dict(put(&mut self.heap.dicts, pairs)))
    }

    /// `(storage, offset, shape, strides, ...)`; typed ones have a dtype after two more.
    fn rebuild(&mut self, args: &[Value], typed: bool) -> Reason<Value> {
        let (&[storage, offset, shape, strides], rest) =
            args.split_first_chunk::<4>().ok_or("a tensor of fewer than 4 arguments")?;
        let Value::Storage(storage) = storage else {
            return Err(format!("a tensor over {storage:?}, which is no storage"));
        };
        let storage = self.heap.storages[storage as usize];
        let dtype = match (storage.dtype, rest.get(2)) {
            (_, Some(Value::Global(Global::Dtype(dtype)))) if typed => *dtype,
            (Some(dtype), _) if !typed => dtype,
            _ => return Err("a tensor without a dtype".to_owned()),
        };
        let (shape, strides) = (self.dims(shape, "shape")?, self.dims(strides, "strides")?);
        if shape.len() != strides.len() {
            return Err(format!("a tensor of shape {shape:?} with strides {strides:?}"));
        }
        let offset = whole(offset, "a tensor's offset")?;
        let tensor = TensorRef { storage, dtype, offset, shape, strides };
        Ok(Value::Tensor(put(&mut self.heap.tensors, tensor)))
    }

    fn dims(&self, v: Value, what: &str) -> Reason<Vec<u64>> {
        let items = self.heap.tuple(v).ok_or_else(|| format!("a tensor whose {what} is no tuple"))?;
        if items.len() > MAX_TENSOR_RANK {
            return Err(format!("a tensor of {} dimensions; at most {MAX_TENSOR_RANK}", items.len()));
        }
        items.iter().map(|v| whole(*v, what)).collect()
    }

    /// State set on an object. State dictionaries carry version numbers this way; they say nothing about tensors.
    fn build(&mut self) -> Reason<()> {
        self.pop()?;
        match self.top()? {
            Value::Dict(_) | Value::Tensor(_) => Ok(()),
            other => Err(format!("state set on {other:?}")),
        }
    }
}

fn put<T>(arena: &mut Vec<T>, item: T) -> u32 {
    // Every item is counted by a push, so an index fits.
    arena.push(item);
    (arena.len() - 1) as u32
}

fn empty() -> String {
    "the stack is empty".to_owned()
}

/// A little-endian two's complement number of at most 8 bytes.
fn signed(bytes: &[u8]) -> i64 {
    let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xFF } else { 0 };
    let mut wide = [fill; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    i64::from_le_bytes(wide)
}

fn whole(v: Value, what: &str) -> Reason<u64> {
    match v {
        Value::Int(n) if n >= 0 => Ok(n as u64),
        other => Err(format!("{what} is {other:?}; a whole number from 0 up is wanted")),
    }
}

fn known_global(module: &str, name: &str) -> Reason<Global> {
    use Global::*;
    let refused = || {
        format!(
            "it calls for {module}.{name}; only tensors and the dictionaries around them are read, and no code \
             in a checkpoint is run (save the model as safetensors instead)"
        )
    };
    Ok(match (module, name) {
        ("collections", "OrderedDict") => OrderedDict,
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v3") => RebuildTensorTyped,
        ("torch._utils", "_rebuild_parameter") => RebuildParameter,
        ("torch.storage", "UntypedStorage" | "_UntypedStorage") => Storage(None),
        ("torch" | "torch.cuda", _) => match (name.strip_suffix("Storage"), torch_dtype(name)) {
            (Some("Untyped"), _) => Storage(None),
            (Some(class), _) => Storage(Some(storage_dtype(class).ok_or_else(refused)?)),
            (None, Some(dtype)) if module == "torch" => Dtype(dtype),
            _ => return Err(refused()),
        },
        _ => return Err(refused()),
    })
}

/// The element type of `torch.<class>Storage`.
fn storage_dtype(class: &str) -> Option<FileDType> {
    Some(match class {
        "Double" => FileDType::F64,
        "Float" => FileDType::F32,
        "Half" => FileDType::F16,
        "BFloat16" => FileDType::Bf16,
        "Long" => FileDType::I64,
        "Int" => FileDType::I32,
        "Short" => FileDType::I16,
        "Char" => FileDType::I8,
        "Byte" => FileDType::U8,
        "Bool" => FileDType::Bool,
        "ComplexFloat" => FileDType::C64,
        _ => return None,
    })
}

/// The element type called `torch.<name>`.
fn torch_dtype(name: &str) -> Option<FileDType> {
    Some(match name {
        "float64" => FileDType::F64,
        "float32" => FileDType::F32,
        "float16" => FileDType::F16,
        "bfloat16" => FileDType::Bf16,
        "float8_e4m3fn" => FileDType::F8E4m3,
        "float8_e4m3fnuz" => FileDType::F8E4m3fnuz,
        "float8_e5m2" => FileDType::F8E5m2,
        "float8_e5m2fnuz" => FileDType::F8E5m2fnuz,
        "float8_e8m0fnu" => FileDType::F8E8m0,
        "int64" => FileDType::I64,
        "int32" => FileDType::I32,
        "int16" => FileDType::I16,
        "int8" => FileDType::I8,
        "uint64" => FileDType::U64,
        "uint32" => FileDType::U32,
        "uint16" => FileDType::U16,
        "uint8" => FileDType::U8,
        "bool" => FileDType::Bool,
        _ => return None,
    })
}

#[cfg(test)]
#[path = "pickle_tests.rs"]
mod tests;
