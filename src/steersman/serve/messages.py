"""The messages of the gRPC protocols, from a table of field numbers; made when gRPC is switched on.

A table and forty lines that read it, not .proto files: what a compiler makes of those would stand here as generated
files three times as long, tied to a version of protobuf. The messages live in a pool of their own, so the official
stubs may be imported beside them. Only what this server reads or writes is in the table; a client's other fields are
skipped, as protobuf does. Fields, numbers and types are those of tensorflow/serving and of the Open Inference Protocol
(tests compare them with the official stubs); messages that are nested there are not nested here, which the wire does
not show.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from steersman.core.errors import DataError

Array = np.ndarray

# A message a line: `field=number:type`, with * if repeated, {type} for a map from strings, `choice/` before the fields
# of a oneof.
_TABLES = {
    "google.protobuf": """
Int64Value value=1:int64
Any type_url=1:string value=2:bytes
""",
    "tensorflow": """
enum DataType DT_INVALID=0 DT_FLOAT=1 DT_DOUBLE=2 DT_INT32=3 DT_UINT8=4 DT_INT16=5 DT_INT8=6 DT_STRING=7 DT_COMPLEX64=8
  DT_INT64=9 DT_BOOL=10 DT_BFLOAT16=14 DT_UINT16=17 DT_COMPLEX128=18 DT_HALF=19 DT_UINT32=22 DT_UINT64=23
Dim size=1:int64 name=2:string
TensorShapeProto dim=2:Dim* unknown_rank=3:bool
TensorProto dtype=1:DataType tensor_shape=2:TensorShapeProto tensor_content=4:bytes half_val=13:int32*
  float_val=5:float* double_val=6:double* int_val=7:int32* string_val=8:bytes* int64_val=10:int64* bool_val=11:bool*
  uint32_val=16:uint32* uint64_val=17:uint64*
BytesList value=1:bytes*
FloatList value=1:float*
Int64List value=1:int64*
Feature kind/bytes_list=1:BytesList kind/float_list=2:FloatList kind/int64_list=3:Int64List
Features feature=1:{Feature}
Example features=1:Features
TensorInfo name=1:string dtype=2:DataType tensor_shape=3:TensorShapeProto
SignatureDef inputs=1:{TensorInfo} outputs=2:{TensorInfo} method_name=3:string
""",
    "tensorflow.serving": """
enum State UNKNOWN=0 START=10 LOADING=20 AVAILABLE=30 UNLOADING=40 END=50
enum Code OK=0 CANCELLED=1 UNKNOWN_ERROR=2 INVALID_ARGUMENT=3 DEADLINE_EXCEEDED=4 NOT_FOUND=5 ALREADY_EXISTS=6
  PERMISSION_DENIED=7 RESOURCE_EXHAUSTED=8 FAILED_PRECONDITION=9 ABORTED=10 OUT_OF_RANGE=11 UNIMPLEMENTED=12
  INTERNAL=13 UNAVAILABLE=14 DATA_LOSS=15 UNAUTHENTICATED=16
ModelSpec name=1:string version_choice/version=2:google.protobuf.Int64Value version_choice/version_label=4:string
  signature_name=3:string
PredictRequest model_spec=1:ModelSpec inputs=2:{tensorflow.TensorProto} output_filter=3:string*
PredictResponse outputs=1:{tensorflow.TensorProto} model_spec=2:ModelSpec
ExampleList examples=1:tensorflow.Example*
ExampleListWithContext examples=1:tensorflow.Example* context=2:tensorflow.Example
Input kind/example_list=1:ExampleList kind/example_list_with_context=2:ExampleListWithContext
ClassificationRequest model_spec=1:ModelSpec input=2:Input
Class label=1:string score=2:float
Classifications classes=1:Class*
ClassificationResult classifications=1:Classifications*
ClassificationResponse result=1:ClassificationResult model_spec=2:ModelSpec
RegressionRequest model_spec=1:ModelSpec input=2:Input
Regression value=1:float
RegressionResult regressions=1:Regression*
RegressionResponse result=1:RegressionResult model_spec=2:ModelSpec
InferenceTask model_spec=1:ModelSpec method_name=2:string
MultiInferenceRequest tasks=1:InferenceTask* input=2:Input
InferenceResult model_spec=1:ModelSpec result/classification_result=2:ClassificationResult
  result/regression_result=3:RegressionResult
MultiInferenceResponse results=1:InferenceResult*
SignatureDefMap signature_def=1:{tensorflow.SignatureDef}
GetModelMetadataRequest model_spec=1:ModelSpec metadata_field=2:string*
GetModelMetadataResponse model_spec=1:ModelSpec metadata=2:{google.protobuf.Any}
StatusProto error_code=1:Code error_message=2:string
GetModelStatusRequest model_spec=1:ModelSpec
ModelVersionStatus version=1:int64 state=2:State status=3:StatusProto
GetModelStatusResponse model_version_status=1:ModelVersionStatus*
VersionPolicy
ModelConfig name=1:string base_path=2:string model_platform=4:string model_version_policy=7:VersionPolicy
  version_labels=8:{int64}
ModelConfigList config=1:ModelConfig*
ModelServerConfig config/model_config_list=1:ModelConfigList config/custom_model_config=2:google.protobuf.Any
ReloadConfigRequest config=1:ModelServerConfig metric_names=2:string*
ReloadConfigResponse status=1:StatusProto
""",
    "inference": """
enum DataType TYPE_INVALID=0 TYPE_BOOL=1 TYPE_UINT8=2 TYPE_UINT16=3 TYPE_UINT32=4 TYPE_UINT64=5 TYPE_INT8=6 TYPE_INT16=7
  TYPE_INT32=8 TYPE_INT64=9 TYPE_FP16=10 TYPE_FP32=11 TYPE_FP64=12 TYPE_STRING=13 TYPE_BF16=14
ServerLiveRequest
ServerLiveResponse live=1:bool
ServerReadyRequest
ServerReadyResponse ready=1:bool
ModelReadyRequest name=1:string version=2:string
ModelReadyResponse ready=1:bool
ServerMetadataRequest
ServerMetadataResponse name=1:string version=2:string extensions=3:string*
ModelMetadataRequest name=1:string version=2:string
TensorMetadata name=1:string datatype=2:string shape=3:int64*
ModelMetadataResponse name=1:string versions=2:string* platform=3:string inputs=4:TensorMetadata*
  outputs=5:TensorMetadata*
InferParameter parameter_choice/bool_param=1:bool parameter_choice/int64_param=2:int64
  parameter_choice/string_param=3:string parameter_choice/double_param=4:double parameter_choice/uint64_param=5:uint64
InferTensorContents bool_contents=1:bool* int_contents=2:int32* int64_contents=3:int64* uint_contents=4:uint32*
  uint64_contents=5:uint64* fp32_contents=6:float* fp64_contents=7:double* bytes_contents=8:bytes*
InferInputTensor name=1:string datatype=2:string shape=3:int64* parameters=4:{InferParameter}
  contents=5:InferTensorContents
InferRequestedOutputTensor name=1:string parameters=2:{InferParameter}
InferOutputTensor name=1:string datatype=2:string shape=3:int64* parameters=4:{InferParameter}
  contents=5:InferTensorContents
ModelInferRequest model_name=1:string model_version=2:string id=3:string parameters=4:{InferParameter}
  inputs=5:InferInputTensor* outputs=6:InferRequestedOutputTensor* raw_input_contents=7:bytes*
ModelInferResponse model_name=1:string model_version=2:string id=3:string parameters=4:{InferParameter}
  outputs=5:InferOutputTensor* raw_output_contents=6:bytes*
ModelInput name=1:string data_type=2:DataType dims=4:int64*
ModelOutput name=1:string data_type=2:DataType dims=3:int64*
ModelConfig name=1:string platform=2:string max_batch_size=4:int32 input=5:ModelInput* output=6:ModelOutput*
  backend=17:string
ModelConfigRequest name=1:string version=2:string
ModelConfigResponse config=1:ModelConfig
ModelStatisticsRequest name=1:string version=2:string
ModelStatistics name=1:string version=2:string inference_count=4:uint64 execution_count=5:uint64
ModelStatisticsResponse model_stats=1:ModelStatistics*
RepositoryIndexRequest repository_name=1:string ready=2:bool
ModelIndex name=1:string version=2:string state=3:string reason=4:string
RepositoryIndexResponse models=1:ModelIndex*
RepositoryModelLoadRequest repository_name=1:string model_name=2:string
RepositoryModelLoadResponse
RepositoryModelUnloadRequest repository_name=1:string model_name=2:string
RepositoryModelUnloadResponse
""",
    "grpc.health.v1": """
enum ServingStatus UNKNOWN=0 SERVING=1 NOT_SERVING=2 SERVICE_UNKNOWN=3
HealthCheckRequest service=1:string
HealthCheckResponse status=1:ServingStatus
""",
}
_FIELD = re.compile(r"(?:(\w+)/)?(\w+)=(\d+):(\{)?([\w.]+)\}?(\*)?")
_SCALARS = "double float int64 uint64 int32 bool string bytes uint32".split()
_Proto = descriptor_pb2.FieldDescriptorProto


def _file(package: str, table: str) -> descriptor_pb2.FileDescriptorProto:
    """A table as protobuf describes a file."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    lines = table.replace("\n  ", " ").split("\n")
    enums = {line.split()[1] for line in lines if line.startswith("enum ")}
    used = set()
    for line in filter(None, lines):
        name, *fields = line.split()
        if name == "enum":
            enum = file.enum_type.add(name=fields[0])
            for value in fields[1:]:
                word, _, number = value.partition("=")
                enum.value.add(name=word, number=int(number))
            continue
        message = file.message_type.add(name=name)
        for text in fields:
            found = _FIELD.fullmatch(text)
            assert found, text
            used.add(found[5].rpartition(".")[0])
            _add_field(message, found, package, enums)
    file.dependency.extend(f"{other}.proto" for other in sorted(used - {""}))
    return file


def _add_field(message: Any, found: re.Match[str], package: str, enums: set[str]) -> None:
    choice, name, number, map_, kind, many = found.groups()
    field = message.field.add(name=name, number=int(number), label=_Proto.LABEL_OPTIONAL)
    if map_:
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=_Proto.TYPE_STRING, label=_Proto.LABEL_OPTIONAL)
        _set_type(entry.field.add(name="value", number=2, label=_Proto.LABEL_OPTIONAL), kind, package, enums)
        kind, many = f"{package}.{message.name}.{entry.name}", "*"
    if many:
        field.label = _Proto.LABEL_REPEATED
    if choice:
        names = [one.name for one in message.oneof_decl]
        if choice not in names:
            message.oneof_decl.add(name=choice)
        field.oneof_index = [*names, choice].index(choice)
    _set_type(field, kind, package, enums)


def _set_type(field: Any, kind: str, package: str, enums: set[str]) -> None:
    if kind in _SCALARS:
        field.type = getattr(_Proto, f"TYPE_{kind.upper()}")
    else:
        field.type = _Proto.TYPE_ENUM if kind in enums else _Proto.TYPE_MESSAGE
        field.type_name = f".{kind}" if "." in kind else f".{package}.{kind}"


def _made() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for package, table in _TABLES.items():
        pool.Add(_file(package, table))
    return pool


_POOL = _made()


def message(name: str) -> Any:
    """The class of a message, by its full name."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


def number_in(enum: str, word: str) -> int:
    """The number of a word of an enum, by the enum's full name."""
    return _POOL.FindEnumTypeByName(enum).values_by_name[word].number


def tag_of(field: str) -> bytes:
    """What stands before the length of a packed field, by the field's full name."""
    return varint(_POOL.FindFieldByName(field).number << 3 | 2)


def varint(number: int) -> bytes:
    """A whole number of 0 or more, as the wire has it.

    >>> varint(300)
    b'\\xac\\x02'
    """
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def numbers(values: Any, dtype: str, name: str) -> Array:
    """Numbers of a repeated field as an array of a type that may be narrower than the field's.

    Raises:
        DataError: the type has no such number.
    """
    wide = np.array(values)
    array = wide.astype(dtype)
    if array.dtype.kind in "iu" and array.itemsize < wide.itemsize and (array != wide).any():
        found = wide[array != wide][0]
        raise DataError(f"input {name}: {found} is no {dtype}")
    return array


def parse(kind: Any, data: bytes) -> Any:
    """A message from its bytes.

    Raises:
        DataError: they are not such a message.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise DataError(f"not a {kind.DESCRIPTOR.full_name}: {error}") from None
