// Changed by v2l: documentation comments (lines that begin with //!) are left out.
/*
 * SPDX-FileCopyrightText: Copyright (c) 1993-2026 NVIDIA CORPORATION & AFFILIATES. All rights reserved.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Licensed under the Apache License, Version 2.0 (the "License");
 * you may not use this file except in compliance with the License.
 * You may obtain a copy of the License at
 *
 * http://www.apache.org/licenses/LICENSE-2.0
 *
 * Unless required by applicable law or agreed to in writing, software
 * distributed under the License is distributed on an "AS IS" BASIS,
 * WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
 * See the License for the specific language governing permissions and
 * limitations under the License.
 */

#ifndef NV_INFER_H
#define NV_INFER_H

#include "NvInferLegacyDims.h"
#include "NvInferRuntime.h" // IWYU pragma: export

namespace nvinfer1
{

enum class LayerType : int32_t
{
    kCONVOLUTION = 0,         //!< Convolution layer.
    kCAST = 1,                //!< Cast layer
    kACTIVATION = 2,          //!< Activation layer.
    kPOOLING = 3,             //!< Pooling layer.
    kLRN = 4,                 //!< LRN layer.
    kSCALE = 5,               //!< Scale layer.
    kSOFTMAX = 6,             //!< SoftMax layer.
    kDECONVOLUTION = 7,       //!< Deconvolution layer.
    kCONCATENATION = 8,       //!< Concatenation layer.
    kELEMENTWISE = 9,         //!< Elementwise layer.
    kPLUGIN = 10,             //!< Plugin layer.
    kUNARY = 11,              //!< UnaryOp operation Layer.
    kPADDING = 12,            //!< Padding layer.
    kSHUFFLE = 13,            //!< Shuffle layer.
    kREDUCE = 14,             //!< Reduce layer.
    kTOPK = 15,               //!< TopK layer.
    kGATHER = 16,             //!< Gather layer.
    kMATRIX_MULTIPLY = 17,    //!< Matrix multiply layer.
    kRAGGED_SOFTMAX = 18,     //!< Ragged softmax layer.
    kCONSTANT = 19,           //!< Constant layer.
    kIDENTITY = 20,           //!< Identity layer.
    kPLUGIN_V2 = 21,          //!< PluginV2 layer.
    kSLICE = 22,              //!< Slice layer.
    kSHAPE = 23,              //!< Shape layer.
    kPARAMETRIC_RELU = 24,    //!< Parametric ReLU layer.
    kRESIZE = 25,             //!< Resize Layer.
    kTRIP_LIMIT = 26,         //!< Loop Trip limit layer
    kRECURRENCE = 27,         //!< Loop Recurrence layer
    kITERATOR = 28,           //!< Loop Iterator layer
    kLOOP_OUTPUT = 29,        //!< Loop output layer
    kSELECT = 30,             //!< Select layer.
    kFILL = 31,               //!< Fill layer
    kQUANTIZE = 32,           //!< Quantize layer
    kDEQUANTIZE = 33,         //!< Dequantize layer
    kCONDITION = 34,          //!< Condition layer
    kCONDITIONAL_INPUT = 35,  //!< Conditional Input layer
    kCONDITIONAL_OUTPUT = 36, //!< Conditional Output layer
    kSCATTER = 37,            //!< Scatter layer
    kEINSUM = 38,             //!< Einsum layer
    kASSERTION = 39,          //!< Assertion layer
    kONE_HOT = 40,            //!< OneHot layer
    kNON_ZERO = 41,           //!< NonZero layer
    kGRID_SAMPLE = 42,        //!< Grid sample layer
    kNMS = 43,                //!< NMS layer
    kREVERSE_SEQUENCE = 44,   //!< Reverse sequence layer
    kNORMALIZATION = 45,      //!< Normalization layer
    kPLUGIN_V3 = 46,          //!< PluginV3 layer.
    kSQUEEZE = 47,            //!< Squeeze Layer.
    kUNSQUEEZE = 48,          //!< Unsqueeze Layer.
    kCUMULATIVE = 49,         //!< Cumulative layer.
    kDYNAMIC_QUANTIZE = 50,   //!< Dynamic Quantize layer.
    kATTENTION_INPUT = 51,    //!< Attention Input.
    kATTENTION_OUTPUT = 52,   //!< Attention Output.
    kROTARY_EMBEDDING = 53,   //!< Rotary Embedding layer.
    kKVCACHE_UPDATE = 54,     //!< KV Cache Update layer.
    kMOE = 55,                //!< MoE layer.
    kDIST_COLLECTIVE = 56,    //!< DistCollective layer.
};

template <>
struct impl::EnumMaxImpl<LayerType>
{
    static constexpr int32_t kVALUE = 57;
};

using TensorFormats = uint32_t;

enum class ActivationType : int32_t
{
    kRELU = 0,              //!< Rectified linear activation.
    kSIGMOID = 1,           //!< Sigmoid activation.
    kTANH = 2,              //!< TanH activation.
    kLEAKY_RELU = 3,        //!< LeakyRelu activation: x>=0 ? x : alpha * x.
    kELU = 4,               //!< Elu activation: x>=0 ? x : alpha * (exp(x) - 1).
    kSELU = 5,              //!< Selu activation: x>0 ? beta * x : beta * (alpha*exp(x) - alpha)
    kSOFTSIGN = 6,          //!< Softsign activation: x / (1+|x|)
    kSOFTPLUS = 7,          //!< Parametric softplus activation: alpha*log(exp(beta*x)+1)
    kCLIP = 8,              //!< Clip activation: max(alpha, min(beta, x))
    kHARD_SIGMOID = 9,      //!< Hard sigmoid activation: max(0, min(1, alpha*x+beta))
    kSCALED_TANH = 10,      //!< Scaled tanh activation: alpha*tanh(beta*x)
    kTHRESHOLDED_RELU = 11, //!< Thresholded ReLU activation: x>alpha ? x : 0
    kGELU_ERF = 12,         //!< GELU erf activation: 0.5 * x * (1 + erf(sqrt(0.5) * x))
    kGELU_TANH = 13         //!< GELU tanh activation: 0.5 * x * (1 + tanh(sqrt(2/pi) * (0.044715F * pow(x, 3) + x)))
};

template <>
struct impl::EnumMaxImpl<ActivationType>
{
    static constexpr int32_t kVALUE = 14;
};

class ITensor : public INoCopy
{
public:
    void setName(char const* name) noexcept
    {
        mImpl->setName(name);
    }

    char const* getName() const noexcept
    {
        return mImpl->getName();
    }

    void setDimensions(Dims const& dimensions) noexcept
    {
        mImpl->setDimensions(dimensions);
    }

    Dims getDimensions() const noexcept
    {
        return mImpl->getDimensions();
    }

    DataType getType() const noexcept
    {
        return mImpl->getType();
    }

    bool isNetworkInput() const noexcept
    {
        return mImpl->isNetworkInput();
    }

    bool isNetworkOutput() const noexcept
    {
        return mImpl->isNetworkOutput();
    }

    void setAllowedFormats(TensorFormats formats) noexcept
    {
        mImpl->setAllowedFormats(formats);
    }

    TensorFormats getAllowedFormats() const noexcept
    {
        return mImpl->getAllowedFormats();
    }

    bool isShapeTensor() const noexcept
    {
        return mImpl->isShapeTensor();
    }

    bool isExecutionTensor() const noexcept
    {
        return mImpl->isExecutionTensor();
    }

    void setDimensionName(int32_t index, char const* name) noexcept
    {
        mImpl->setDimensionName(index, name);
    }

    char const* getDimensionName(int32_t index) const noexcept
    {
        return mImpl->getDimensionName(index);
    }

protected:
    apiv::VTensor* mImpl;
    virtual ~ITensor() noexcept = 0;
};

inline ITensor::~ITensor() noexcept = default;

class ILayer : public INoCopy
{
public:
    LayerType getType() const noexcept
    {
        return mLayer->getType();
    }

    void setName(char const* name) noexcept
    {
        mLayer->setName(name);
    }

    char const* getName() const noexcept
    {
        return mLayer->getName();
    }

    int32_t getNbInputs() const noexcept
    {
        return mLayer->getNbInputs();
    }

    ITensor* getInput(int32_t index) const noexcept
    {
        return mLayer->getInput(index);
    }

    int32_t getNbOutputs() const noexcept
    {
        return mLayer->getNbOutputs();
    }

    ITensor* getOutput(int32_t index) const noexcept
    {
        return mLayer->getOutput(index);
    }

    void setInput(int32_t index, ITensor& tensor) noexcept
    {
        return mLayer->setInput(index, tensor);
    }

    DataType getOutputType(int32_t index) const noexcept
    {
        return mLayer->getOutputType(index);
    }

    void setMetadata(char const* metadata) noexcept
    {
        mLayer->setMetadata(metadata);
    }

    char const* getMetadata() const noexcept
    {
        return mLayer->getMetadata();
    }

    bool setNbRanks(int32_t nbRanks) noexcept
    {
        return mLayer->setNbRanks(nbRanks);
    }

    int32_t getNbRanks() const noexcept
    {
        return mLayer->getNbRanks();
    }

protected:
    virtual ~ILayer() noexcept = 0;
    apiv::VLayer* mLayer;
};

inline ILayer::~ILayer() noexcept = default;

enum class PaddingMode : int32_t
{
    kEXPLICIT_ROUND_DOWN = 0, //!< Use explicit padding, rounding output size down.
    kEXPLICIT_ROUND_UP = 1,   //!< Use explicit padding, rounding output size up.
    kSAME_UPPER = 2,          //!< Use SAME padding, with prePadding <= postPadding.
    kSAME_LOWER = 3,          //!< Use SAME padding, with prePadding >= postPadding.
};

template <>
struct impl::EnumMaxImpl<PaddingMode>
{
    static constexpr int32_t kVALUE = 4;
};

class IConvolutionLayer : public ILayer
{
public:
    void setNbOutputMaps(int64_t nbOutputMaps) noexcept
    {
        mImpl->setNbOutputMaps(nbOutputMaps);
    }

    int64_t getNbOutputMaps() const noexcept
    {
        return mImpl->getNbOutputMaps();
    }

    void setNbGroups(int64_t nbGroups) noexcept
    {
        mImpl->setNbGroups(nbGroups);
    }

    int64_t getNbGroups() const noexcept
    {
        return mImpl->getNbGroups();
    }

    void setKernelWeights(Weights weights) noexcept
    {
        mImpl->setKernelWeights(weights);
    }

    Weights getKernelWeights() const noexcept
    {
        return mImpl->getKernelWeights();
    }

    void setBiasWeights(Weights weights) noexcept
    {
        mImpl->setBiasWeights(weights);
    }

    Weights getBiasWeights() const noexcept
    {
        return mImpl->getBiasWeights();
    }

    void setPrePadding(Dims const& padding) noexcept
    {
        mImpl->setPrePadding(padding);
    }

    Dims getPrePadding() const noexcept
    {
        return mImpl->getPrePadding();
    }

    void setPostPadding(Dims const& padding) noexcept
    {
        mImpl->setPostPadding(padding);
    }

    Dims getPostPadding() const noexcept
    {
        return mImpl->getPostPadding();
    }

    void setPaddingMode(PaddingMode paddingMode) noexcept
    {
        mImpl->setPaddingMode(paddingMode);
    }

    PaddingMode getPaddingMode() const noexcept
    {
        return mImpl->getPaddingMode();
    }

    void setKernelSizeNd(Dims const& kernelSize) noexcept
    {
        mImpl->setKernelSizeNd(kernelSize);
    }

    Dims getKernelSizeNd() const noexcept
    {
        return mImpl->getKernelSizeNd();
    }

    void setStrideNd(Dims const& stride) noexcept
    {
        mImpl->setStrideNd(stride);
    }

    Dims getStrideNd() const noexcept
    {
        return mImpl->getStrideNd();
    }

    void setPaddingNd(Dims const& padding) noexcept
    {
        mImpl->setPaddingNd(padding);
    }

    Dims getPaddingNd() const noexcept
    {
        return mImpl->getPaddingNd();
    }

    void setDilationNd(Dims const& dilation) noexcept
    {
        mImpl->setDilationNd(dilation);
    }

    Dims getDilationNd() const noexcept
    {
        return mImpl->getDilationNd();
    }

    using ILayer::setInput;

protected:
    virtual ~IConvolutionLayer() noexcept = 0;
    apiv::VConvolutionLayer* mImpl;
};

inline IConvolutionLayer::~IConvolutionLayer() noexcept = default;

class IActivationLayer : public ILayer
{
public:
    void setActivationType(ActivationType type) noexcept
    {
        mImpl->setActivationType(type);
    }

    ActivationType getActivationType() const noexcept
    {
        return mImpl->getActivationType();
    }

    void setAlpha(float alpha) noexcept
    {
        mImpl->setAlpha(alpha);
    }

    void setBeta(float beta) noexcept
    {
        mImpl->setBeta(beta);
    }

    float getAlpha() const noexcept
    {
        return mImpl->getAlpha();
    }

    float getBeta() const noexcept
    {
        return mImpl->getBeta();
    }

protected:
    virtual ~IActivationLayer() noexcept = 0;
    apiv::VActivationLayer* mImpl;
};

inline IActivationLayer::~IActivationLayer() noexcept = default;

enum class PoolingType : int32_t
{
    kMAX = 0,              //!< Maximum over elements
    kAVERAGE = 1,          //!< Average over elements. If the tensor is padded, the count includes the padding
    kMAX_AVERAGE_BLEND = 2 //!< Blending between max and average pooling: (1-blendFactor)*maxPool + blendFactor*avgPool
};

template <>
struct impl::EnumMaxImpl<PoolingType>
{
    static constexpr int32_t kVALUE = 3;
};

class IPoolingLayer : public ILayer
{
public:
    void setPoolingType(PoolingType type) noexcept
    {
        mImpl->setPoolingType(type);
    }

    PoolingType getPoolingType() const noexcept
    {
        return mImpl->getPoolingType();
    }

    void setBlendFactor(float blendFactor) noexcept
    {
        mImpl->setBlendFactor(blendFactor);
    }

    float getBlendFactor() const noexcept
    {
        return mImpl->getBlendFactor();
    }

    void setAverageCountExcludesPadding(bool exclusive) noexcept
    {
        mImpl->setAverageCountExcludesPadding(exclusive);
    }

    bool getAverageCountExcludesPadding() const noexcept
    {
        return mImpl->getAverageCountExcludesPadding();
    }

    void setPrePadding(Dims const& padding) noexcept
    {
        mImpl->setPrePadding(padding);
    }

    Dims getPrePadding() const noexcept
    {
        return mImpl->getPrePadding();
    }

    void setPostPadding(Dims const& padding) noexcept
    {
        mImpl->setPostPadding(padding);
    }

    Dims getPostPadding() const noexcept
    {
        return mImpl->getPostPadding();
    }

    void setPaddingMode(PaddingMode paddingMode) noexcept
    {
        mImpl->setPaddingMode(paddingMode);
    }

    PaddingMode getPaddingMode() const noexcept
    {
        return mImpl->getPaddingMode();
    }

    void setWindowSizeNd(Dims const& windowSize) noexcept
    {
        mImpl->setWindowSizeNd(windowSize);
    }

    Dims getWindowSizeNd() const noexcept
    {
        return mImpl->getWindowSizeNd();
    }

    void setStrideNd(Dims const& stride) noexcept
    {
        mImpl->setStrideNd(stride);
    }

    Dims getStrideNd() const noexcept
    {
        return mImpl->getStrideNd();
    }

    void setPaddingNd(Dims const& padding) noexcept
    {
        mImpl->setPaddingNd(padding);
    }

    Dims getPaddingNd() const noexcept
    {
        return mImpl->getPaddingNd();
    }

protected:
    virtual ~IPoolingLayer() noexcept = 0;
    apiv::VPoolingLayer* mImpl;
};

inline IPoolingLayer::~IPoolingLayer() noexcept = default;

class ILRNLayer : public ILayer
{
public:
    void setWindowSize(int64_t windowSize) noexcept
    {
        mImpl->setWindowSize(windowSize);
    }

    int64_t getWindowSize() const noexcept
    {
        return mImpl->getWindowSize();
    }

    void setAlpha(float alpha) noexcept
    {
        mImpl->setAlpha(alpha);
    }

    float getAlpha() const noexcept
    {
        return mImpl->getAlpha();
    }

    void setBeta(float beta) noexcept
    {
        mImpl->setBeta(beta);
    }

    float getBeta() const noexcept
    {
        return mImpl->getBeta();
    }

    void setK(float k) noexcept
    {
        mImpl->setK(k);
    }

    float getK() const noexcept
    {
        return mImpl->getK();
    }

protected:
    virtual ~ILRNLayer() noexcept = 0;
    apiv::VLRNLayer* mImpl;
};

inline ILRNLayer::~ILRNLayer() noexcept = default;

enum class ScaleMode : int32_t
{
    kUNIFORM = 0,    //!< Identical coefficients across all elements of the tensor.
    kCHANNEL = 1,    //!< Per-channel coefficients.
    kELEMENTWISE = 2 //!< Elementwise coefficients.
};

template <>
struct impl::EnumMaxImpl<ScaleMode>
{
    static constexpr int32_t kVALUE = 3;
};

class IScaleLayer : public ILayer
{
public:
    void setMode(ScaleMode mode) noexcept
    {
        mImpl->setMode(mode);
    }

    ScaleMode getMode() const noexcept
    {
        return mImpl->getMode();
    }

    void setShift(Weights shift) noexcept
    {
        mImpl->setShift(shift);
    }

    Weights getShift() const noexcept
    {
        return mImpl->getShift();
    }

    void setScale(Weights scale) noexcept
    {
        mImpl->setScale(scale);
    }

    Weights getScale() const noexcept
    {
        return mImpl->getScale();
    }

    void setPower(Weights power) noexcept
    {
        mImpl->setPower(power);
    }

    Weights getPower() const noexcept
    {
        return mImpl->getPower();
    }

    int32_t getChannelAxis() const noexcept
    {
        return mImpl->getChannelAxis();
    }

    void setChannelAxis(int32_t channelAxis) noexcept
    {
        mImpl->setChannelAxis(channelAxis);
    }

protected:
    virtual ~IScaleLayer() noexcept = 0;
    apiv::VScaleLayer* mImpl;
};

inline IScaleLayer::~IScaleLayer() noexcept = default;

class ISoftMaxLayer : public ILayer
{
public:
    void setAxes(uint32_t axes) noexcept
    {
        mImpl->setAxes(axes);
    }

    uint32_t getAxes() const noexcept
    {
        return mImpl->getAxes();
    }

protected:
    virtual ~ISoftMaxLayer() noexcept = 0;
    apiv::VSoftMaxLayer* mImpl;
};

inline ISoftMaxLayer::~ISoftMaxLayer() noexcept = default;

class IConcatenationLayer : public ILayer
{
public:
    void setAxis(int32_t axis) noexcept
    {
        mImpl->setAxis(axis);
    }

    int32_t getAxis() const noexcept
    {
        return mImpl->getAxis();
    }

protected:
    virtual ~IConcatenationLayer() noexcept = 0;
    apiv::VConcatenationLayer* mImpl;
};

inline IConcatenationLayer::~IConcatenationLayer() noexcept = default;

class IDeconvolutionLayer : public ILayer
{
public:
    void setNbOutputMaps(int64_t nbOutputMaps) noexcept
    {
        mImpl->setNbOutputMaps(nbOutputMaps);
    }

    int64_t getNbOutputMaps() const noexcept
    {
        return mImpl->getNbOutputMaps();
    }

    void setNbGroups(int64_t nbGroups) noexcept
    {
        mImpl->setNbGroups(nbGroups);
    }

    int64_t getNbGroups() const noexcept
    {
        return mImpl->getNbGroups();
    }

    void setKernelWeights(Weights weights) noexcept
    {
        mImpl->setKernelWeights(weights);
    }

    Weights getKernelWeights() const noexcept
    {
        return mImpl->getKernelWeights();
    }

    void setBiasWeights(Weights weights) noexcept
    {
        mImpl->setBiasWeights(weights);
    }

    Weights getBiasWeights() const noexcept
    {
        return mImpl->getBiasWeights();
    }

    void setPrePadding(Dims const& padding) noexcept
    {
        mImpl->setPrePadding(padding);
    }

    Dims getPrePadding() const noexcept
    {
        return mImpl->getPrePadding();
    }

    void setPostPadding(Dims const& padding) noexcept
    {
        mImpl->setPostPadding(padding);
    }

    Dims getPostPadding() const noexcept
    {
        return mImpl->getPostPadding();
    }

    void setPaddingMode(PaddingMode paddingMode) noexcept
    {
        mImpl->setPaddingMode(paddingMode);
    }

    PaddingMode getPaddingMode() const noexcept
    {
        return mImpl->getPaddingMode();
    }

    void setKernelSizeNd(Dims const& kernelSize) noexcept
    {
        mImpl->setKernelSizeNd(kernelSize);
    }

    Dims getKernelSizeNd() const noexcept
    {
        return mImpl->getKernelSizeNd();
    }

    void setStrideNd(Dims const& stride) noexcept
    {
        mImpl->setStrideNd(stride);
    }

    Dims getStrideNd() const noexcept
    {
        return mImpl->getStrideNd();
    }

    void setPaddingNd(Dims const& padding) noexcept
    {
        mImpl->setPaddingNd(padding);
    }

    Dims getPaddingNd() const noexcept
    {
        return mImpl->getPaddingNd();
    }

    using ILayer::setInput;

    void setDilationNd(Dims const& dilation) noexcept
    {
        mImpl->setDilationNd(dilation);
    }

    Dims getDilationNd() const noexcept
    {
        return mImpl->getDilationNd();
    }

protected:
    virtual ~IDeconvolutionLayer() noexcept = 0;
    apiv::VDeconvolutionLayer* mImpl;
};

inline IDeconvolutionLayer::~IDeconvolutionLayer() noexcept = default;

enum class ElementWiseOperation : int32_t
{
    kSUM = 0,       //!< Sum of the two elements.
    kPROD = 1,      //!< Product of the two elements.
    kMAX = 2,       //!< Maximum of the two elements.
    kMIN = 3,       //!< Minimum of the two elements.
    kSUB = 4,       //!< Subtract the second element from the first.
    kDIV = 5,       //!< Divide the first element by the second.
    kPOW = 6,       //!< The first element to the power of the second element.
    kFLOOR_DIV = 7, //!< Floor division of the first element by the second.
    kAND = 8,       //!< Logical AND of two elements.
    kOR = 9,        //!< Logical OR of two elements.
    kXOR = 10,      //!< Logical XOR of two elements.
    kEQUAL = 11,    //!< Check if two elements are equal.
    kGREATER = 12,  //!< Check if element in first tensor is greater than corresponding element in second tensor.
    kLESS = 13      //!< Check if element in first tensor is less than corresponding element in second tensor.
};

template <>
struct impl::EnumMaxImpl<ElementWiseOperation>
{
    static constexpr int32_t kVALUE = 14;
};

class IElementWiseLayer : public ILayer
{
public:
    void setOperation(ElementWiseOperation op) noexcept
    {
        return mImpl->setOperation(op);
    }

    ElementWiseOperation getOperation() const noexcept
    {
        return mImpl->getOperation();
    }

protected:
    apiv::VElementWiseLayer* mImpl;
    virtual ~IElementWiseLayer() noexcept = 0;
};

inline IElementWiseLayer::~IElementWiseLayer() noexcept = default;

enum class GatherMode : int32_t
{
    kDEFAULT = 0, //!< Similar to ONNX Gather
    kELEMENT = 1, //!< Similar to ONNX GatherElements
    kND = 2       //!< Similar to ONNX GatherND
};

template <>
struct impl::EnumMaxImpl<GatherMode>
{
    static constexpr int32_t kVALUE = 3;
};

class IGatherLayer : public ILayer
{
public:
    void setGatherAxis(int32_t axis) noexcept
    {
        mImpl->setGatherAxis(axis);
    }

    int32_t getGatherAxis() const noexcept
    {
        return mImpl->getGatherAxis();
    }

    void setNbElementWiseDims(int32_t elementWiseDims) noexcept
    {
        mImpl->setNbElementWiseDims(elementWiseDims);
    }

    int32_t getNbElementWiseDims() const noexcept
    {
        return mImpl->getNbElementWiseDims();
    }

    void setMode(GatherMode mode) noexcept
    {
        mImpl->setMode(mode);
    }

    GatherMode getMode() const noexcept
    {
        return mImpl->getMode();
    }

protected:
    apiv::VGatherLayer* mImpl;
    virtual ~IGatherLayer() noexcept = 0;
};

inline IGatherLayer::~IGatherLayer() noexcept = default;

class TRT_DEPRECATED IPluginV2Layer : public ILayer
{
public:
    IPluginV2& getPlugin() noexcept
    {
        return mImpl->getPlugin();
    }

protected:
    apiv::VPluginV2Layer* mImpl;
    virtual ~IPluginV2Layer() noexcept = 0;
};

inline IPluginV2Layer::~IPluginV2Layer() noexcept = default;

class IPluginV3Layer : public ILayer
{
public:
    IPluginV3& getPlugin() noexcept
    {
        return mImpl->getPlugin();
    }

protected:
    apiv::VPluginV3Layer* mImpl;
    virtual ~IPluginV3Layer() noexcept = 0;
};

inline IPluginV3Layer::~IPluginV3Layer() noexcept = default;

enum class UnaryOperation : int32_t
{
    kEXP = 0,    //!< Exponentiation.
    kLOG = 1,    //!< Log (base e).
    kSQRT = 2,   //!< Square root.
    kRECIP = 3,  //!< Reciprocal.
    kABS = 4,    //!< Absolute value.
    kNEG = 5,    //!< Negation.
    kSIN = 6,    //!< Sine.
    kCOS = 7,    //!< Cosine.
    kTAN = 8,    //!< Tangent.
    kSINH = 9,   //!< Hyperbolic sine.
    kCOSH = 10,  //!< Hyperbolic cosine.
    kASIN = 11,  //!< Inverse sine.
    kACOS = 12,  //!< Inverse cosine.
    kATAN = 13,  //!< Inverse tangent.
    kASINH = 14, //!< Inverse hyperbolic sine.
    kACOSH = 15, //!< Inverse hyperbolic cosine.
    kATANH = 16, //!< Inverse hyperbolic tangent.
    kCEIL = 17,  //!< Ceiling.
    kFLOOR = 18, //!< Floor.
    kERF = 19,   //!< Gauss error function.
    kNOT = 20,   //!< Logical NOT.
    kSIGN = 21,  //!< Sign, If input > 0, output 1; if input < 0, output -1; if input == 0, output 0.
    kROUND = 22, //!< Round to nearest even for floating-point data type.
    kISINF = 23, //!< Return true if input value equals +/- infinity for floating-point data type.
    kISNAN = 24, //!< Return true if input value is a NaN for floating-point data type.
};

template <>
struct impl::EnumMaxImpl<UnaryOperation>
{
    static constexpr int32_t kVALUE = 25;
};

class IUnaryLayer : public ILayer
{
public:
    void setOperation(UnaryOperation op) noexcept
    {
        mImpl->setOperation(op);
    }

    UnaryOperation getOperation() const noexcept
    {
        return mImpl->getOperation();
    }

protected:
    apiv::VUnaryLayer* mImpl;
    virtual ~IUnaryLayer() noexcept = 0;
};

inline IUnaryLayer::~IUnaryLayer() noexcept = default;

enum class ReduceOperation : int32_t
{
    kSUM = 0,  //!< Sum of the elements.
    kPROD = 1, //!< Product of the elements.
    kMAX = 2,  //!< Maximum of the elements.
    kMIN = 3,  //!< Minimum of the elements.
    kAVG = 4,  //!< Average of the elements.
    kNONE = 5, //!< No reduction.
};

template <>
struct impl::EnumMaxImpl<ReduceOperation>
{
    static constexpr int32_t kVALUE = 6;
};

enum class CollectiveOperation : int32_t
{
    kALL_REDUCE = 0,     //!< All reduce.
    kALL_GATHER = 1,     //!< All gather.
    kBROADCAST = 2,      //!< Broadcast.
    kREDUCE = 3,         //!< Reduce.
    kREDUCE_SCATTER = 4, //!< Reduce scatter.
    kALL_TO_ALL = 5,     //!< All-to-all exchange.
    kGATHER = 6,         //!< Gather to root.
    kSCATTER = 7,        //!< Scatter from root.
};

template <>
struct impl::EnumMaxImpl<CollectiveOperation>
{
    static constexpr int32_t kVALUE = 8;
};

class IReduceLayer : public ILayer
{
public:
    void setOperation(ReduceOperation op) noexcept
    {
        mImpl->setOperation(op);
    }

    ReduceOperation getOperation() const noexcept
    {
        return mImpl->getOperation();
    }

    void setReduceAxes(uint32_t reduceAxes) noexcept
    {
        mImpl->setReduceAxes(reduceAxes);
    }

    uint32_t getReduceAxes() const noexcept
    {
        return mImpl->getReduceAxes();
    }

    void setKeepDimensions(bool keepDimensions) noexcept
    {
        mImpl->setKeepDimensions(keepDimensions);
    }

    bool getKeepDimensions() const noexcept
    {
        return mImpl->getKeepDimensions();
    }

protected:
    apiv::VReduceLayer* mImpl;
    virtual ~IReduceLayer() noexcept = 0;
};

inline IReduceLayer::~IReduceLayer() noexcept = default;

class IPaddingLayer : public ILayer
{
public:
    void setPrePaddingNd(Dims const& padding) noexcept
    {
        mImpl->setPrePaddingNd(padding);
    }

    Dims getPrePaddingNd() const noexcept
    {
        return mImpl->getPrePaddingNd();
    }

    void setPostPaddingNd(Dims const& padding) noexcept
    {
        mImpl->setPostPaddingNd(padding);
    }

    Dims getPostPaddingNd() const noexcept
    {
        return mImpl->getPostPaddingNd();
    }

protected:
    apiv::VPaddingLayer* mImpl;
    virtual ~IPaddingLayer() noexcept = 0;
};

inline IPaddingLayer::~IPaddingLayer() noexcept = default;

struct Permutation
{
    int32_t order[Dims::MAX_DIMS];
};

class IShuffleLayer : public ILayer
{
public:
    void setFirstTranspose(Permutation permutation) noexcept
    {
        mImpl->setFirstTranspose(permutation);
    }

    Permutation getFirstTranspose() const noexcept
    {
        return mImpl->getFirstTranspose();
    }

    void setReshapeDimensions(Dims const& dimensions) noexcept
    {
        mImpl->setReshapeDimensions(dimensions);
    }

    Dims getReshapeDimensions() const noexcept
    {
        return mImpl->getReshapeDimensions();
    }

    //
    using ILayer::setInput;

    void setSecondTranspose(Permutation permutation) noexcept
    {
        mImpl->setSecondTranspose(permutation);
    }

    Permutation getSecondTranspose() const noexcept
    {
        return mImpl->getSecondTranspose();
    }

    void setZeroIsPlaceholder(bool zeroIsPlaceholder) noexcept
    {
        return mImpl->setZeroIsPlaceholder(zeroIsPlaceholder);
    }

    bool getZeroIsPlaceholder() const noexcept
    {
        return mImpl->getZeroIsPlaceholder();
    }

protected:
    apiv::VShuffleLayer* mImpl;
    virtual ~IShuffleLayer() noexcept = 0;
};

inline IShuffleLayer::~IShuffleLayer() noexcept = default;

enum class SampleMode : int32_t
{
    kSTRICT_BOUNDS = 0,                            //!< Fail with error when the coordinates are out of bounds.
    kWRAP = 1,                                     //!< Coordinates wrap around periodically.
    kCLAMP = 2,                                    //!< Out of bounds indices are clamped to bounds.
    kFILL = 3,                                     //!< Use fill input value when coordinates are out of bounds.
    kREFLECT = 4, //!< Coordinates reflect. The axis of reflection is the middle of the perimeter pixel and the
};

template <>
struct impl::EnumMaxImpl<SampleMode>
{
    static constexpr int32_t kVALUE = 5;
};

class ISliceLayer : public ILayer
{
public:
    void setStart(Dims const& start) noexcept
    {
        mImpl->setStart(start);
    }

    Dims getStart() const noexcept
    {
        return mImpl->getStart();
    }

    void setSize(Dims const& size) noexcept
    {
        return mImpl->setSize(size);
    }

    Dims getSize() const noexcept
    {
        return mImpl->getSize();
    }

    void setStride(Dims const& stride) noexcept
    {
        mImpl->setStride(stride);
    }

    Dims getStride() const noexcept
    {
        return mImpl->getStride();
    }

    void setMode(SampleMode mode) noexcept
    {
        mImpl->setMode(mode);
    }

    SampleMode getMode() const noexcept
    {
        return mImpl->getMode();
    }

    using ILayer::setInput;

    void setAxes(Dims const& axes) noexcept
    {
        mImpl->setAxes(axes);
    }

    Dims getAxes() const noexcept
    {
        return mImpl->getAxes();
    }

protected:
    apiv::VSliceLayer* mImpl;
    virtual ~ISliceLayer() noexcept = 0;
};

inline ISliceLayer::~ISliceLayer() noexcept = default;

class IShapeLayer : public ILayer
{
protected:
    apiv::VShapeLayer* mImpl;
    virtual ~IShapeLayer() noexcept = 0;
};

inline IShapeLayer::~IShapeLayer() noexcept = default;

enum class TopKOperation : int32_t
{
    kMAX = 0, //!< Maximum of the elements.
    kMIN = 1, //!< Minimum of the elements.
};

template <>
struct impl::EnumMaxImpl<TopKOperation>
{
    static constexpr int32_t kVALUE = 2;
};

class ITopKLayer : public ILayer
{
public:
    void setOperation(TopKOperation op) noexcept
    {
        mImpl->setOperation(op);
    }

    TopKOperation getOperation() const noexcept
    {
        return mImpl->getOperation();
    }

    void setK(int32_t k) noexcept
    {
        mImpl->setK(k);
    }

    int32_t getK() const noexcept
    {
        return mImpl->getK();
    }

    void setReduceAxes(uint32_t reduceAxes) noexcept
    {
        mImpl->setReduceAxes(reduceAxes);
    }

    uint32_t getReduceAxes() const noexcept
    {
        return mImpl->getReduceAxes();
    }

    using ILayer::setInput;

    bool setIndicesType(DataType type) noexcept
    {
        return mImpl->setIndicesType(type);
    }

    DataType getIndicesType() const noexcept
    {
        return mImpl->getIndicesType();
    }

protected:
    apiv::VTopKLayer* mImpl;
    virtual ~ITopKLayer() noexcept = 0;
};

inline ITopKLayer::~ITopKLayer() noexcept = default;

enum class MatrixOperation : int32_t
{
    kNONE = 0,

    kTRANSPOSE = 1,

    kVECTOR = 2,
};

template <>
struct impl::EnumMaxImpl<MatrixOperation>
{
    static constexpr int32_t kVALUE = 3;
};

class IMatrixMultiplyLayer : public ILayer
{
public:
    void setOperation(int32_t index, MatrixOperation op) noexcept
    {
        mImpl->setOperation(index, op);
    }

    MatrixOperation getOperation(int32_t index) const noexcept
    {
        return mImpl->getOperation(index);
    }

protected:
    apiv::VMatrixMultiplyLayer* mImpl;
    virtual ~IMatrixMultiplyLayer() noexcept = 0;
};

inline IMatrixMultiplyLayer::~IMatrixMultiplyLayer() noexcept = default;

class INonZeroLayer : public ILayer
{
public:
    bool setIndicesType(DataType type) noexcept
    {
        return mImpl->setIndicesType(type);
    }

    DataType getIndicesType() const noexcept
    {
        return mImpl->getIndicesType();
    }

protected:
    virtual ~INonZeroLayer() noexcept = 0;
    apiv::VNonZeroLayer* mImpl;
};

inline INonZeroLayer::~INonZeroLayer() noexcept = default;

class IRaggedSoftMaxLayer : public ILayer
{
protected:
    apiv::VRaggedSoftMaxLayer* mImpl;
    virtual ~IRaggedSoftMaxLayer() noexcept = 0;
};

inline IRaggedSoftMaxLayer::~IRaggedSoftMaxLayer() noexcept = default;

class IIdentityLayer : public ILayer
{
protected:
    apiv::VIdentityLayer* mImpl;
    virtual ~IIdentityLayer() noexcept = 0;
};

inline IIdentityLayer::~IIdentityLayer() noexcept = default;

class ICastLayer : public ILayer
{
public:
    void setToType(DataType toType) noexcept
    {
        mImpl->setToType(toType);
    }

    DataType getToType() const noexcept
    {
        return mImpl->getToType();
    }

protected:
    apiv::VCastLayer* mImpl;
    virtual ~ICastLayer() noexcept = 0;
};

inline ICastLayer::~ICastLayer() noexcept = default;

class IConstantLayer : public ILayer
{
public:
    void setWeights(Weights weights) noexcept
    {
        mImpl->setWeights(weights);
    }

    Weights getWeights() const noexcept
    {
        return mImpl->getWeights();
    }

    void setDimensions(Dims const& dimensions) noexcept
    {
        mImpl->setDimensions(dimensions);
    }

    Dims getDimensions() const noexcept
    {
        return mImpl->getDimensions();
    }

protected:
    apiv::VConstantLayer* mImpl;
    virtual ~IConstantLayer() noexcept = 0;
};

inline IConstantLayer::~IConstantLayer() noexcept = default;

class IParametricReLULayer : public ILayer
{
protected:
    apiv::VParametricReLULayer* mImpl;
    virtual ~IParametricReLULayer() noexcept = 0;
};

inline IParametricReLULayer::~IParametricReLULayer() noexcept = default;

enum class InterpolationMode : int32_t
{
    kNEAREST = 0, //!< ND (0 < N <= 8) nearest neighbor resizing.
    kLINEAR = 1,  //!< Supports linear (1D), bilinear (2D), and trilinear (3D) interpolation
    kCUBIC = 2    //!< Supports bicubic (2D) and tricubic (3D) interpolation
};

template <>
struct impl::EnumMaxImpl<InterpolationMode>
{
    static constexpr int32_t kVALUE = 3;
};

enum class ResizeCoordinateTransformation : int32_t
{
    kALIGN_CORNERS = 0,

    kASYMMETRIC = 1,

    kHALF_PIXEL = 2,
};

template <>
struct impl::EnumMaxImpl<ResizeCoordinateTransformation>
{
    static constexpr int32_t kVALUE = 3;
};

enum class ResizeSelector : int32_t
{
    kFORMULA = 0,

    kUPPER = 1,
};

template <>
struct impl::EnumMaxImpl<ResizeSelector>
{
    static constexpr int32_t kVALUE = 2;
};

enum class ResizeRoundMode : int32_t
{
    kHALF_UP = 0,

    kHALF_DOWN = 1,

    kFLOOR = 2,

    kCEIL = 3,
};

template <>
struct impl::EnumMaxImpl<ResizeRoundMode>
{
    static constexpr int32_t kVALUE = 4;
};

class IResizeLayer : public ILayer
{
public:
    void setOutputDimensions(Dims const& dimensions) noexcept
    {
        return mImpl->setOutputDimensions(dimensions);
    }

    Dims getOutputDimensions() const noexcept
    {
        return mImpl->getOutputDimensions();
    }

    void setScales(float const* scales, int32_t nbScales) noexcept
    {
        mImpl->setScales(scales, nbScales);
    }

    int32_t getScales(int32_t size, float* scales) const noexcept
    {
        return mImpl->getScales(size, scales);
    }

    void setResizeMode(InterpolationMode interpolationMode) noexcept
    {
        mImpl->setResizeMode(interpolationMode);
    }

    InterpolationMode getResizeMode() const noexcept
    {
        return mImpl->getResizeMode();
    }

    using ILayer::setInput;

    void setCoordinateTransformation(ResizeCoordinateTransformation coordTransform) noexcept
    {
        mImpl->setCoordinateTransformation(coordTransform);
    }

    ResizeCoordinateTransformation getCoordinateTransformation() const noexcept
    {
        return mImpl->getCoordinateTransformation();
    }

    void setSelectorForSinglePixel(ResizeSelector selector) noexcept
    {
        mImpl->setSelectorForSinglePixel(selector);
    }

    ResizeSelector getSelectorForSinglePixel() const noexcept
    {
        return mImpl->getSelectorForSinglePixel();
    }

    void setNearestRounding(ResizeRoundMode value) noexcept
    {
        mImpl->setNearestRounding(value);
    }

    ResizeRoundMode getNearestRounding() const noexcept
    {
        return mImpl->getNearestRounding();
    }

    void setCubicCoeff(float A) noexcept
    {
        mImpl->setCubicCoeff(A);
    }

    float getCubicCoeff() const noexcept
    {
        return mImpl->getCubicCoeff();
    }

    void setExcludeOutside(bool excludeFlag) noexcept
    {
        mImpl->setExcludeOutside(excludeFlag);
    }

    bool getExcludeOutside() const noexcept
    {
        return mImpl->getExcludeOutside();
    }

protected:
    virtual ~IResizeLayer() noexcept = 0;
    apiv::VResizeLayer* mImpl;
};

inline IResizeLayer::~IResizeLayer() noexcept = default;

enum class LoopOutput : int32_t
{
    kLAST_VALUE = 0,

    kCONCATENATE = 1,

    kREVERSE = 2
};

template <>
struct impl::EnumMaxImpl<LoopOutput>
{
    static constexpr int32_t kVALUE = 3;
};

enum class TripLimit : int32_t
{

    kCOUNT = 0, //!< Tensor is a scalar of type kINT32 or kINT64 that contains the trip count.
    kWHILE = 1  //!< Tensor is a scalar of type kBOOL. Loop terminates when value is false.
};

template <>
struct impl::EnumMaxImpl<TripLimit>
{
    static constexpr int32_t kVALUE = 2;
};

class ILoop;

class ILoopBoundaryLayer : public ILayer
{
public:
    ILoop* getLoop() const noexcept
    {
        return mBoundary->getLoop();
    }

protected:
    virtual ~ILoopBoundaryLayer() noexcept = 0;
    apiv::VLoopBoundaryLayer* mBoundary;
};

inline ILoopBoundaryLayer::~ILoopBoundaryLayer() noexcept = default;

class IIfConditionalBoundaryLayer : public ILayer
{
public:
    IIfConditional* getConditional() const noexcept
    {
        return mBoundary->getConditional();
    }

protected:
    virtual ~IIfConditionalBoundaryLayer() noexcept = 0;
    apiv::VConditionalBoundaryLayer* mBoundary;
};

inline IIfConditionalBoundaryLayer::~IIfConditionalBoundaryLayer() noexcept = default;

class IConditionLayer : public IIfConditionalBoundaryLayer
{
public:
protected:
    virtual ~IConditionLayer() noexcept = 0;
    apiv::VConditionLayer* mImpl;
};

inline IConditionLayer::~IConditionLayer() noexcept = default;

class IIfConditionalOutputLayer : public IIfConditionalBoundaryLayer
{
public:
protected:
    virtual ~IIfConditionalOutputLayer() noexcept = 0;
    apiv::VConditionalOutputLayer* mImpl;
};

inline IIfConditionalOutputLayer::~IIfConditionalOutputLayer() noexcept = default;

class IIfConditionalInputLayer : public IIfConditionalBoundaryLayer
{
public:
protected:
    virtual ~IIfConditionalInputLayer() noexcept = 0;
    apiv::VConditionalInputLayer* mImpl;
};

inline IIfConditionalInputLayer::~IIfConditionalInputLayer() noexcept = default;

class IIfConditional : public INoCopy
{
public:
    IConditionLayer* setCondition(ITensor& condition) noexcept
    {
        return mImpl->setCondition(condition);
    }

    IIfConditionalOutputLayer* addOutput(ITensor& trueSubgraphOutput, ITensor& falseSubgraphOutput) noexcept
    {
        return mImpl->addOutput(trueSubgraphOutput, falseSubgraphOutput);
    }

    IIfConditionalInputLayer* addInput(ITensor& input) noexcept
    {
        return mImpl->addInput(input);
    }

    void setName(char const* name) noexcept
    {
        mImpl->setName(name);
    }

    char const* getName() const noexcept
    {
        return mImpl->getName();
    }

protected:
    virtual ~IIfConditional() noexcept = 0;
    apiv::VIfConditional* mImpl;
};

inline IIfConditional::~IIfConditional() noexcept = default;

class IRecurrenceLayer : public ILoopBoundaryLayer
{
public:
    //
    using ILayer::setInput;

protected:
    virtual ~IRecurrenceLayer() noexcept = 0;
    apiv::VRecurrenceLayer* mImpl;
};

inline IRecurrenceLayer::~IRecurrenceLayer() noexcept = default;

class ILoopOutputLayer : public ILoopBoundaryLayer
{
public:
    LoopOutput getLoopOutput() const noexcept
    {
        return mImpl->getLoopOutput();
    }

    void setAxis(int32_t axis) noexcept
    {
        mImpl->setAxis(axis);
    }

    int32_t getAxis() const noexcept
    {
        return mImpl->getAxis();
    }

    //
    using ILayer::setInput;

protected:
    virtual ~ILoopOutputLayer() noexcept = 0;
    apiv::VLoopOutputLayer* mImpl;
};

inline ILoopOutputLayer::~ILoopOutputLayer() noexcept = default;

class ITripLimitLayer : public ILoopBoundaryLayer
{
public:
    TripLimit getTripLimit() const noexcept
    {
        return mImpl->getTripLimit();
    }

protected:
    virtual ~ITripLimitLayer() noexcept = 0;
    apiv::VTripLimitLayer* mImpl;
};

inline ITripLimitLayer::~ITripLimitLayer() noexcept = default;

class IIteratorLayer : public ILoopBoundaryLayer
{
public:
    void setAxis(int32_t axis) noexcept
    {
        mImpl->setAxis(axis);
    }

    int32_t getAxis() const noexcept
    {
        return mImpl->getAxis();
    }

    void setReverse(bool reverse) noexcept
    {
        mImpl->setReverse(reverse);
    }

    bool getReverse() const noexcept
    {
        return mImpl->getReverse();
    }

protected:
    virtual ~IIteratorLayer() noexcept = 0;
    apiv::VIteratorLayer* mImpl;
};

inline IIteratorLayer::~IIteratorLayer() noexcept = default;

class ILoop : public INoCopy
{
public:
    IRecurrenceLayer* addRecurrence(ITensor& initialValue) noexcept
    {
        return mImpl->addRecurrence(initialValue);
    }

    ITripLimitLayer* addTripLimit(ITensor& tensor, TripLimit limit) noexcept
    {
        return mImpl->addTripLimit(tensor, limit);
    }

    IIteratorLayer* addIterator(ITensor& tensor, int32_t axis = 0, bool reverse = false) noexcept
    {
        return mImpl->addIterator(tensor, axis, reverse);
    }

    ILoopOutputLayer* addLoopOutput(ITensor& tensor, LoopOutput outputKind, int32_t axis = 0) noexcept
    {
        return mImpl->addLoopOutput(tensor, outputKind, axis);
    }

    void setName(char const* name) noexcept
    {
        mImpl->setName(name);
    }

    char const* getName() const noexcept
    {
        return mImpl->getName();
    }

protected:
    virtual ~ILoop() noexcept = 0;
    apiv::VLoop* mImpl;
};

inline ILoop::~ILoop() noexcept = default;

class ISelectLayer : public ILayer
{
protected:
    virtual ~ISelectLayer() noexcept = 0;
    apiv::VSelectLayer* mImpl;
};

inline ISelectLayer::~ISelectLayer() noexcept = default;

class IAssertionLayer : public ILayer
{
public:
    void setMessage(char const* message) noexcept
    {
        mImpl->setMessage(message);
    }

    char const* getMessage() const noexcept
    {
        return mImpl->getMessage();
    }

protected:
    virtual ~IAssertionLayer() noexcept = 0;

    apiv::VAssertionLayer* mImpl;
};

inline IAssertionLayer::~IAssertionLayer() noexcept = default;

enum class FillOperation : int32_t
{
    kLINSPACE = 0,

    kRANDOM_UNIFORM = 1,

    kRANDOM_NORMAL = 2
};

template <>
struct impl::EnumMaxImpl<FillOperation>
{
    static constexpr int32_t kVALUE = 3;
};

class IFillLayer : public ILayer
{
public:
    //
    void setDimensions(Dims const& dimensions) noexcept
    {
        mImpl->setDimensions(dimensions);
    }

    Dims getDimensions() const noexcept
    {
        return mImpl->getDimensions();
    }

    void setOperation(FillOperation op) noexcept
    {
        mImpl->setOperation(op);
    }

    FillOperation getOperation() const noexcept
    {
        return mImpl->getOperation();
    }

    //
    void setAlpha(double alpha) noexcept
    {
        mImpl->setAlpha(alpha);
    }

    double getAlpha() const noexcept
    {
        return mImpl->getAlpha();
    }

    void setBeta(double beta) noexcept
    {
        mImpl->setBeta(beta);
    }

    double getBeta() const noexcept
    {
        return mImpl->getBeta();
    }

    using ILayer::setInput;

    //
    void setAlphaInt64(int64_t alpha) noexcept
    {
        mImpl->setAlphaInt64(alpha);
    }

    int64_t getAlphaInt64() const noexcept
    {
        return mImpl->getAlphaInt64();
    }

    void setBetaInt64(int64_t beta) noexcept
    {
        mImpl->setBetaInt64(beta);
    }

    int64_t getBetaInt64() const noexcept
    {
        return mImpl->getBetaInt64();
    }

    bool isAlphaBetaInt64() const noexcept
    {
        return mImpl->isAlphaBetaInt64();
    }

    void setToType(DataType toType) noexcept
    {
        mImpl->setToType(toType);
    }

    DataType getToType() const noexcept
    {
        return mImpl->getToType();
    }

protected:
    virtual ~IFillLayer() noexcept = 0;
    apiv::VFillLayer* mImpl;
};

inline IFillLayer::~IFillLayer() noexcept = default;

class IQuantizeLayer : public ILayer
{
public:
    int32_t getAxis() const noexcept
    {
        return mImpl->getAxis();
    }
    void setAxis(int32_t axis) noexcept
    {
        mImpl->setAxis(axis);
    }

    bool setBlockShape(Dims const& blockShape) noexcept
    {
        return mImpl->setBlockShape(blockShape);
    }

    TRT_NODISCARD Dims getBlockShape() const noexcept
    {
        return mImpl->getBlockShape();
    }

    void setToType(DataType toType) noexcept
    {
        mImpl->setToType(toType);
    }

    DataType getToType() const noexcept
    {
        return mImpl->getToType();
    }

protected:
    virtual ~IQuantizeLayer() noexcept = 0;
    apiv::VQuantizeLayer* mImpl;
};

inline IQuantizeLayer::~IQuantizeLayer() noexcept = default;

class IDequantizeLayer : public ILayer
{
public:
    int32_t getAxis() const noexcept
    {
        return mImpl->getAxis();
    }
    void setAxis(int32_t axis) noexcept
    {
        mImpl->setAxis(axis);
    }

    bool setBlockShape(Dims const& blockShape) noexcept
    {
        return mImpl->setBlockShape(blockShape);
    }

    TRT_NODISCARD Dims getBlockShape() const noexcept
    {
        return mImpl->getBlockShape();
    }

    void setToType(DataType toType) noexcept
    {
        mImpl->setToType(toType);
    }

    DataType getToType() const noexcept
    {
        return mImpl->getToType();
    }

protected:
    virtual ~IDequantizeLayer() noexcept = 0;
    apiv::VDequantizeLayer* mImpl;
};

inline IDequantizeLayer::~IDequantizeLayer() noexcept = default;

class IDynamicQuantizeLayer : public ILayer
{
public:
    using ILayer::setInput;

    void setToType(DataType toType) noexcept
    {
        mImpl->setToType(toType);
    }

    DataType getToType() const noexcept
    {
        return mImpl->getToType();
    }

    void setScaleType(DataType scaleType) noexcept
    {
        mImpl->setScaleType(scaleType);
    }

    DataType getScaleType() const noexcept
    {
        return mImpl->getScaleType();
    }

    TRT_DEPRECATED void setAxis(int32_t axis) noexcept
    {
        mImpl->setAxis(axis);
    }

    TRT_DEPRECATED int32_t getAxis() const noexcept
    {
        return mImpl->getAxis();
    }

    TRT_DEPRECATED void setBlockSize(int32_t size) noexcept
    {
        mImpl->setBlockSize(size);
    }

    TRT_DEPRECATED int32_t getBlockSize() const noexcept
    {
        return mImpl->getBlockSize();
    }

    void setBlockShape(Dims const& blockShape) noexcept
    {
        mImpl->setBlockShape(blockShape);
    }

    Dims getBlockShape() const noexcept
    {
        return mImpl->getBlockShape();
    }

protected:
    virtual ~IDynamicQuantizeLayer() noexcept = 0;
    apiv::VDynamicQuantizeLayer* mImpl;
};

inline IDynamicQuantizeLayer::~IDynamicQuantizeLayer() noexcept = default;

class IEinsumLayer : public ILayer
{
public:
    bool setEquation(char const* equation) noexcept
    {
        return mImpl->setEquation(equation);
    }

    char const* getEquation() const noexcept
    {
        return mImpl->getEquation();
    }

protected:
    virtual ~IEinsumLayer() noexcept = 0;
    apiv::VEinsumLayer* mImpl;
};

inline IEinsumLayer::~IEinsumLayer() noexcept = default;

enum class ScatterMode : int32_t
{
    kELEMENT = 0, //!< Similar to ONNX ScatterElements
    kND = 1,      //!< Similar to ONNX ScatterND
};

template <>
struct impl::EnumMaxImpl<ScatterMode>
{
    static constexpr int32_t kVALUE = 2;
};

class IScatterLayer : public ILayer
{
public:
    void setMode(ScatterMode mode) noexcept
    {
        mImpl->setMode(mode);
    }

    ScatterMode getMode() const noexcept
    {
        return mImpl->getMode();
    }

    void setAxis(int32_t axis) noexcept
    {
        mImpl->setAxis(axis);
    }

    int32_t getAxis() const noexcept
    {
        return mImpl->getAxis();
    }

protected:
    apiv::VScatterLayer* mImpl;
    virtual ~IScatterLayer() noexcept = 0;
}; // class IScatterLayer

inline IScatterLayer::~IScatterLayer() noexcept = default;

class IOneHotLayer : public ILayer
{
public:
    void setAxis(int32_t axis) noexcept
    {
        mImpl->setAxis(axis);
    }

    int32_t getAxis() const noexcept
    {
        return mImpl->getAxis();
    }

protected:
    apiv::VOneHotLayer* mImpl;
    virtual ~IOneHotLayer() noexcept = 0;
};

inline IOneHotLayer::~IOneHotLayer() noexcept = default;

class IGridSampleLayer : public ILayer
{
public:
    void setInterpolationMode(InterpolationMode mode) noexcept
    {
        mImpl->setInterpolationMode(mode);
    }

    InterpolationMode getInterpolationMode() const noexcept
    {
        return mImpl->getInterpolationMode();
    }

    void setAlignCorners(bool alignCorners) noexcept
    {
        mImpl->setAlignCorners(alignCorners);
    }

    bool getAlignCorners() const noexcept
    {
        return mImpl->getAlignCorners();
    }

    bool setSampleMode(SampleMode mode) noexcept
    {
        return mImpl->setSampleMode(mode);
    }

    SampleMode getSampleMode() const noexcept
    {
        return mImpl->getSampleMode();
    }

protected:
    apiv::VGridSampleLayer* mImpl;
    virtual ~IGridSampleLayer() noexcept = 0;
}; // class IGridSampleLayer

inline IGridSampleLayer::~IGridSampleLayer() noexcept = default;

enum class BoundingBoxFormat : int32_t
{
    kCORNER_PAIRS = 0,
    kCENTER_SIZES = 1
};

template <>
struct impl::EnumMaxImpl<BoundingBoxFormat>
{
    static constexpr int32_t kVALUE = 2;
};

class INMSLayer : public ILayer
{
public:
    void setBoundingBoxFormat(BoundingBoxFormat fmt) noexcept
    {
        mImpl->setBoundingBoxFormat(fmt);
    }

    BoundingBoxFormat getBoundingBoxFormat() const noexcept
    {
        return mImpl->getBoundingBoxFormat();
    }

    void setTopKBoxLimit(int32_t limit) noexcept
    {
        mImpl->setTopKBoxLimit(limit);
    }

    int32_t getTopKBoxLimit() const noexcept
    {
        return mImpl->getTopKBoxLimit();
    }

    using ILayer::setInput;

    bool setIndicesType(DataType type) noexcept
    {
        return mImpl->setIndicesType(type);
    }

    DataType getIndicesType() const noexcept
    {
        return mImpl->getIndicesType();
    }

protected:
    apiv::VNMSLayer* mImpl;
    virtual ~INMSLayer() noexcept = 0;
}; // class INMSLayer

inline INMSLayer::~INMSLayer() noexcept = default;

class IReverseSequenceLayer : public ILayer
{
public:
    void setBatchAxis(int32_t batchAxis) noexcept
    {
        mImpl->setBatchAxis(batchAxis);
    }

    int32_t getBatchAxis() const noexcept
    {
        return mImpl->getBatchAxis();
    }

    void setSequenceAxis(int32_t sequenceAxis) noexcept
    {
        mImpl->setSequenceAxis(sequenceAxis);
    }

    int32_t getSequenceAxis() const noexcept
    {
        return mImpl->getSequenceAxis();
    }

protected:
    apiv::VReverseSequenceLayer* mImpl;
    virtual ~IReverseSequenceLayer() noexcept = 0;
}; // class IReverseSequenceLayer

inline IReverseSequenceLayer::~IReverseSequenceLayer() noexcept = default;

class INormalizationLayer : public ILayer
{
public:
    void setEpsilon(float eps) noexcept
    {
        return mImpl->setEpsilon(eps);
    }

    float getEpsilon() const noexcept
    {
        return mImpl->getEpsilon();
    }

    void setAxes(uint32_t axesMask) noexcept
    {
        return mImpl->setAxes(axesMask);
    }

    uint32_t getAxes() const noexcept
    {
        return mImpl->getAxes();
    }

    void setNbGroups(int64_t nbGroups) noexcept
    {
        return mImpl->setNbGroups(nbGroups);
    }

    int64_t getNbGroups() const noexcept
    {
        return mImpl->getNbGroups();
    }

    TRT_NODISCARD bool isV2() const noexcept
    {
        return mImpl->isV2();
    }

protected:
    apiv::VNormalizationLayer* mImpl;
    virtual ~INormalizationLayer() noexcept = 0;
};

inline INormalizationLayer::~INormalizationLayer() noexcept = default;

class ISqueezeLayer : public ILayer
{
public:
    using ILayer::setInput;

protected:
    apiv::VSqueezeLayer* mImpl;
    virtual ~ISqueezeLayer() noexcept = 0;
};

inline ISqueezeLayer::~ISqueezeLayer() noexcept = default;

class IUnsqueezeLayer : public ILayer
{
public:
    using ILayer::setInput;

protected:
    apiv::VUnsqueezeLayer* mImpl;
    virtual ~IUnsqueezeLayer() noexcept = 0;
};

inline IUnsqueezeLayer::~IUnsqueezeLayer() noexcept = default;

enum class CumulativeOperation : int32_t
{
    kSUM = 0, //!< Calculate cumulative sum.
};

template <>
struct impl::EnumMaxImpl<CumulativeOperation>
{
    static constexpr int32_t kVALUE = 1;
};

class ICumulativeLayer : public ILayer
{
public:
    bool setOperation(CumulativeOperation op) noexcept
    {
        return mImpl->setOperation(op);
    }

    CumulativeOperation getOperation() const noexcept
    {
        return mImpl->getOperation();
    }

    void setExclusive(bool exclusive) noexcept
    {
        mImpl->setExclusive(exclusive);
    }

    bool getExclusive() const noexcept
    {
        return mImpl->getExclusive();
    }

    void setReverse(bool reverse) noexcept
    {
        mImpl->setReverse(reverse);
    }

    bool getReverse() const noexcept
    {
        return mImpl->getReverse();
    }

protected:
    apiv::VCumulativeLayer* mImpl;
    virtual ~ICumulativeLayer() noexcept = 0;
};

inline ICumulativeLayer::~ICumulativeLayer() noexcept = default;

enum class AttentionNormalizationOp : int32_t
{
    kNONE
    = 0, //!< Apply no normalization on the attention scores. Must be used with decomposable=True on pre-Blackwell GPUs
    kSOFTMAX = 1, //!< Apply softmax normalization on the attention scores on the `s_kv` dimension.
};

template <>
struct impl::EnumMaxImpl<AttentionNormalizationOp>
{
    static constexpr int32_t kVALUE = 2;
};

enum class CausalMaskKind : int32_t
{
    kNONE = 0,

    kUPPER_LEFT = 1,

    kLOWER_RIGHT = 2,
};

template <>
struct impl::EnumMaxImpl<CausalMaskKind>
{
    static constexpr int32_t kVALUE = 3;
};

enum class AttentionIOForm : int32_t
{
    kPADDED_BHND = 0,
    kPACKED_NHD = 1,
};

template <>
struct impl::EnumMaxImpl<AttentionIOForm>
{
    static constexpr int32_t kVALUE = 2;
};

class IAttentionBoundaryLayer : public ILayer
{
public:
    IAttention* getAttention() const noexcept
    {
        return mBoundary->getAttention();
    }

protected:
    virtual ~IAttentionBoundaryLayer() noexcept = 0;
    apiv::VAttentionBoundaryLayer* mBoundary;
};

inline IAttentionBoundaryLayer::~IAttentionBoundaryLayer() noexcept = default;

class IAttentionInputLayer : public IAttentionBoundaryLayer
{
public:
    using ILayer::setInput;

protected:
    virtual ~IAttentionInputLayer() noexcept = 0;
    apiv::VAttentionInputLayer* mImpl;
};

inline IAttentionInputLayer::~IAttentionInputLayer() noexcept = default;

class IAttentionOutputLayer : public IAttentionBoundaryLayer
{
public:
protected:
    virtual ~IAttentionOutputLayer() noexcept = 0;
    apiv::VAttentionOutputLayer* mImpl;
};

inline IAttentionOutputLayer::~IAttentionOutputLayer() noexcept = default;

class IAttention : public INoCopy
{
public:
    bool setNormalizationOperation(AttentionNormalizationOp op) noexcept
    {
        return mImpl->setNormalizationOperation(op);
    }

    AttentionNormalizationOp getNormalizationOperation() const noexcept
    {
        return mImpl->getNormalizationOperation();
    }

    bool setMask(ITensor& mask) noexcept
    {
        return mImpl->setMask(mask);
    }

    ITensor* getMask() noexcept
    {
        return mImpl->getMask();
    }

    TRT_DEPRECATED bool setCausal(bool isCausal) noexcept
    {
        return mImpl->setCausal(isCausal);
    }

    TRT_DEPRECATED bool getCausal() const noexcept
    {
        return mImpl->getCausal();
    }

    bool setCausalKind(CausalMaskKind kind) noexcept
    {
        return mImpl->setCausalKind(kind);
    }

    CausalMaskKind getCausalKind() const noexcept
    {
        return mImpl->getCausalKind();
    }

    bool setDecomposable(bool decomposable) noexcept
    {
        return mImpl->setDecomposable(decomposable);
    }

    bool getDecomposable() const noexcept
    {
        return mImpl->getDecomposable();
    }

    bool setInput(int32_t index, ITensor& input) noexcept
    {
        return mImpl->setInput(index, input);
    }

    int32_t getNbInputs() const noexcept
    {
        return mImpl->getNbInputs();
    }

    ITensor* getInput(int32_t index) const noexcept
    {
        return mImpl->getInput(index);
    }

    int32_t getNbOutputs() const noexcept
    {
        return mImpl->getNbOutputs();
    }

    ITensor* getOutput(int32_t index) const noexcept
    {
        return mImpl->getOutput(index);
    }

    bool setName(char const* name) noexcept
    {
        return mImpl->setName(name);
    }

    char const* getName() const noexcept
    {
        return mImpl->getName();
    }

    bool setNormalizationQuantizeScale(ITensor& tensor) noexcept
    {
        return mImpl->setNormalizationQuantizeScale(tensor);
    }

    ITensor* getNormalizationQuantizeScale() const noexcept
    {
        return mImpl->getNormalizationQuantizeScale();
    }

    bool setNormalizationQuantizeToType(DataType type) noexcept
    {
        return mImpl->setNormalizationQuantizeToType(type);
    }

    DataType getNormalizationQuantizeToType() const noexcept
    {
        return mImpl->getNormalizationQuantizeToType();
    }

    bool setMetadata(char const* metadata) noexcept
    {
        return mImpl->setMetadata(metadata);
    }

    char const* getMetadata() const noexcept
    {
        return mImpl->getMetadata();
    }

    bool setNbRanks(int32_t nbRanks) noexcept
    {
        return mImpl->setNbRanks(nbRanks);
    }

    int32_t getNbRanks() const noexcept
    {
        return mImpl->getNbRanks();
    }

    TRT_NODISCARD bool setQueryForm(AttentionIOForm form) noexcept
    {
        return mImpl->setQueryForm(form);
    }

    TRT_NODISCARD AttentionIOForm getQueryForm() const noexcept
    {
        return mImpl->getQueryForm();
    }

    TRT_NODISCARD bool setKeyValueForm(AttentionIOForm form) noexcept
    {
        return mImpl->setKeyValueForm(form);
    }

    TRT_NODISCARD AttentionIOForm getKeyValueForm() const noexcept
    {
        return mImpl->getKeyValueForm();
    }

    TRT_NODISCARD bool setQueryLengths(ITensor* lengths) noexcept
    {
        return mImpl->setQueryLengths(lengths);
    }

    TRT_NODISCARD ITensor* getQueryLengths() const noexcept
    {
        return mImpl->getQueryLengths();
    }

    TRT_NODISCARD bool setKeyValueLengths(ITensor* lengths) noexcept
    {
        return mImpl->setKeyValueLengths(lengths);
    }

    TRT_NODISCARD ITensor* getKeyValueLengths() const noexcept
    {
        return mImpl->getKeyValueLengths();
    }

protected:
    apiv::VAttention* mImpl;
    virtual ~IAttention() noexcept = 0;
};

inline IAttention::~IAttention() noexcept = default;

class IRotaryEmbeddingLayer : public ILayer
{
public:
    void setInterleaved(bool interleaved) noexcept
    {
        mImpl->setInterleaved(interleaved);
    }

    TRT_NODISCARD bool getInterleaved() const noexcept
    {
        return mImpl->getInterleaved();
    }

    TRT_NODISCARD bool setRotaryEmbeddingDim(int32_t rotaryEmbeddingDim) noexcept
    {
        return mImpl->setRotaryEmbeddingDim(rotaryEmbeddingDim);
    }

    TRT_NODISCARD int32_t getRotaryEmbeddingDim() const noexcept
    {
        return mImpl->getRotaryEmbeddingDim();
    }

    using ILayer::setInput;

protected:
    apiv::VRotaryEmbeddingLayer* mImpl;
    virtual ~IRotaryEmbeddingLayer() noexcept = 0;
};

inline IRotaryEmbeddingLayer::~IRotaryEmbeddingLayer() noexcept = default;

enum class KVCacheMode : int32_t
{
    kLINEAR = 0, //!< Linear mode.
};

template <>
struct impl::EnumMaxImpl<KVCacheMode>
{
    static constexpr int32_t kVALUE = 1;
};

class IKVCacheUpdateLayer : public ILayer
{
public:
    using ILayer::setInput;

    bool setCacheMode(KVCacheMode cacheMode) noexcept
    {
        return mImpl->setCacheMode(cacheMode);
    }

    KVCacheMode getCacheMode() const noexcept
    {
        return mImpl->getCacheMode();
    }

    TRT_NODISCARD bool setUpdateForm(AttentionIOForm form) noexcept
    {
        return mImpl->setUpdateForm(form);
    }

    TRT_NODISCARD AttentionIOForm getUpdateForm() const noexcept
    {
        return mImpl->getUpdateForm();
    }

    TRT_NODISCARD bool setUpdateLengths(ITensor* lengths) noexcept
    {
        return mImpl->setUpdateLengths(lengths);
    }

    TRT_NODISCARD ITensor* getUpdateLengths() const noexcept
    {
        return mImpl->getUpdateLengths();
    }

protected:
    apiv::VKVCacheUpdateLayer* mImpl;
    virtual ~IKVCacheUpdateLayer() noexcept = 0;
};

inline IKVCacheUpdateLayer::~IKVCacheUpdateLayer() noexcept = default;

enum class MoEActType : int32_t
{
    kNONE = 0,
    kSILU = 1,
};

template <>
struct impl::EnumMaxImpl<MoEActType>
{
    static constexpr int32_t kVALUE = 2;
};

class IMoELayer : public ILayer
{
public:
    void setGatedWeights(ITensor& fcGateWeights, ITensor& fcUpWeights, ITensor& fcDownWeights, MoEActType activationType) noexcept
    {
        mImpl->setGatedWeights(fcGateWeights, fcUpWeights, fcDownWeights, activationType);
    }

    void setGatedBiases(ITensor& fcGateBiases, ITensor& fcUpBiases, ITensor& fcDownBiases) noexcept
    {
        mImpl->setGatedBiases(fcGateBiases, fcUpBiases, fcDownBiases);
    }

    void setActivationType(MoEActType activationType) noexcept
    {
        mImpl->setActivationType(activationType);
    }

    MoEActType getActivationType() const noexcept
    {
        return mImpl->getActivationType();
    }

    void setQuantizationStatic(ITensor& fcDownActivationScale, DataType dataType) noexcept
    {
        mImpl->setQuantizationStatic(fcDownActivationScale, dataType);
    }

    void setQuantizationDynamicDblQ(ITensor& fcDownActivationDblQScale, DataType dataType, Dims const& blockShape, DataType dynQOutputScaleType) noexcept
    {
        mImpl->setQuantizationDynamicDblQ(fcDownActivationDblQScale, dataType, blockShape, dynQOutputScaleType);
    }

    void setQuantizationToType(DataType type) noexcept
    {
        mImpl->setQuantizationToType(type);
    }

    DataType getQuantizationToType() const noexcept
    {
        return mImpl->getQuantizationToType();
    }

    void setQuantizationBlockShape(Dims const& blockShape) noexcept
    {
        mImpl->setQuantizationBlockShape(blockShape);
    }

    Dims getQuantizationBlockShape() const noexcept
    {
        return mImpl->getQuantizationBlockShape();
    }

    void setDynQOutputScaleType(DataType type) noexcept
    {
        mImpl->setDynQOutputScaleType(type);
    }

    DataType getDynQOutputScaleType() const noexcept
    {
        return mImpl->getDynQOutputScaleType();
    }

    void setSwigluParams(float limit, float alpha, float beta) noexcept
    {
        mImpl->setSwigluParams(limit, alpha, beta);
    }

    void setSwigluParamLimit(float limit) noexcept
    {
        mImpl->setSwigluParamLimit(limit);
    }

    float getSwigluParamLimit() const noexcept
    {
        return mImpl->getSwigluParamLimit();
    }

    void setSwigluParamAlpha(float alpha) noexcept
    {
        mImpl->setSwigluParamAlpha(alpha);
    }

    float getSwigluParamAlpha() const noexcept
    {
        return mImpl->getSwigluParamAlpha();
    }

    void setSwigluParamBeta(float beta) noexcept
    {
        mImpl->setSwigluParamBeta(beta);
    }

    float getSwigluParamBeta() const noexcept
    {
        return mImpl->getSwigluParamBeta();
    }

    void setInput(int32_t index, ITensor& tensor) noexcept
    {
        mImpl->setInput(index, tensor);
    }

    using ILayer::setInput;

protected:
    virtual ~IMoELayer() noexcept = 0;
    apiv::VMoELayer* mImpl;
};

inline IMoELayer::~IMoELayer() noexcept = default;

class IDistCollectiveLayer : public ILayer
{
protected:
    virtual ~IDistCollectiveLayer() noexcept = 0;
    apiv::VDistCollectiveLayer* mImpl;
}; // class IDistCollectiveLayer

inline IDistCollectiveLayer::~IDistCollectiveLayer() noexcept = default;

class INetworkDefinition : public INoCopy
{
public:
    virtual ~INetworkDefinition() noexcept = 0;

    ITensor* addInput(char const* name, DataType type, Dims const& dimensions) noexcept
    {
        return mImpl->addInput(name, type, dimensions);
    }

    void markOutput(ITensor& tensor) noexcept
    {
        mImpl->markOutput(tensor);
    }

    bool markDebug(ITensor& tensor) noexcept
    {
        return mImpl->markDebug(tensor);
    }

    bool unmarkDebug(ITensor& tensor) noexcept
    {
        return mImpl->unmarkDebug(tensor);
    }

    bool isDebugTensor(ITensor const& tensor) const noexcept
    {
        return mImpl->isDebugTensor(tensor);
    }

    bool markUnfusedTensorsAsDebugTensors() noexcept
    {
        return mImpl->markUnfusedTensorsAsDebugTensors();
    }

    bool unmarkUnfusedTensorsAsDebugTensors() noexcept
    {
        return mImpl->unmarkUnfusedTensorsAsDebugTensors();
    }

    IActivationLayer* addActivation(ITensor& input, ActivationType type) noexcept
    {
        return mImpl->addActivation(input, type);
    }

    ILRNLayer* addLRN(ITensor& input, int64_t window, float alpha, float beta, float k) noexcept
    {
        return mImpl->addLRN(input, window, alpha, beta, k);
    }

    IScaleLayer* addScale(ITensor& input, ScaleMode mode, Weights shift, Weights scale, Weights power) noexcept
    {
        return mImpl->addScale(input, mode, shift, scale, power);
    }

    ISoftMaxLayer* addSoftMax(ITensor& input) noexcept
    {
        return mImpl->addSoftMax(input);
    }

    IConcatenationLayer* addConcatenation(ITensor* const* inputs, int32_t nbInputs) noexcept
    {
        return mImpl->addConcatenation(inputs, nbInputs);
    }

    IElementWiseLayer* addElementWise(ITensor& input1, ITensor& input2, ElementWiseOperation op) noexcept
    {
        return mImpl->addElementWise(input1, input2, op);
    }

    IUnaryLayer* addUnary(ITensor& input, UnaryOperation operation) noexcept
    {
        return mImpl->addUnary(input, operation);
    }

    IShuffleLayer* addShuffle(ITensor& input) noexcept
    {
        return mImpl->addShuffle(input);
    }

    IOneHotLayer* addOneHot(ITensor& indices, ITensor& values, ITensor& depth, int32_t axis) noexcept
    {
        return mImpl->addOneHot(indices, values, depth, axis);
    }

    int32_t getNbLayers() const noexcept
    {
        return mImpl->getNbLayers();
    }

    ILayer* getLayer(int32_t index) const noexcept
    {
        return mImpl->getLayer(index);
    }

    int32_t getNbInputs() const noexcept
    {
        return mImpl->getNbInputs();
    }

    ITensor* getInput(int32_t index) const noexcept
    {
        return mImpl->getInput(index);
    }

    int32_t getNbOutputs() const noexcept
    {
        return mImpl->getNbOutputs();
    }

    ITensor* getOutput(int32_t index) const noexcept
    {
        return mImpl->getOutput(index);
    }

    IReduceLayer* addReduce(
        ITensor& input, ReduceOperation operation, uint32_t reduceAxes, bool keepDimensions) noexcept
    {
        return mImpl->addReduce(input, operation, reduceAxes, keepDimensions);
    }

    TRT_DEPRECATED ITopKLayer* addTopK(ITensor& input, TopKOperation op, int32_t k, uint32_t reduceAxes) noexcept
    {
        return mImpl->addTopK(input, op, k, reduceAxes);
    }

    ITopKLayer* addTopK(ITensor& input, TopKOperation op, int32_t k, uint32_t reduceAxes, DataType indicesType) noexcept
    {
        return mImpl->addTopKV2(input, op, k, reduceAxes, indicesType);
    }

    IGatherLayer* addGather(ITensor& data, ITensor& indices, int32_t axis) noexcept
    {
        return mImpl->addGather(data, indices, axis);
    }

    IGatherLayer* addGatherV2(ITensor& data, ITensor& indices, GatherMode mode) noexcept
    {
        return mImpl->addGatherV2(data, indices, mode);
    }

    IRaggedSoftMaxLayer* addRaggedSoftMax(ITensor& input, ITensor& bounds) noexcept
    {
        return mImpl->addRaggedSoftMax(input, bounds);
    }

    IMatrixMultiplyLayer* addMatrixMultiply(
        ITensor& input0, MatrixOperation op0, ITensor& input1, MatrixOperation op1) noexcept
    {
        return mImpl->addMatrixMultiply(input0, op0, input1, op1);
    }

    TRT_DEPRECATED INonZeroLayer* addNonZero(ITensor& input) noexcept
    {
        return mImpl->addNonZero(input);
    }

    INonZeroLayer* addNonZero(ITensor& input, DataType indicesType) noexcept
    {
        return mImpl->addNonZeroV2(input, indicesType);
    }

    IConstantLayer* addConstant(Dims const& dimensions, Weights weights) noexcept
    {
        return mImpl->addConstant(dimensions, weights);
    }

    IIdentityLayer* addIdentity(ITensor& input) noexcept
    {
        return mImpl->addIdentity(input);
    }

    ICastLayer* addCast(ITensor& input, DataType toType) noexcept
    {
        return mImpl->addCast(input, toType);
    }

    void removeTensor(ITensor& tensor) noexcept
    {
        mImpl->removeTensor(tensor);
    }

    void unmarkOutput(ITensor& tensor) noexcept
    {
        mImpl->unmarkOutput(tensor);
    }

    ISliceLayer* addSlice(ITensor& input, Dims const& start, Dims const& size, Dims const& stride) noexcept
    {
        return mImpl->addSlice(input, start, size, stride);
    }

    void setName(char const* name) noexcept
    {
        mImpl->setName(name);
    }

    char const* getName() const noexcept
    {
        return mImpl->getName();
    }

    IShapeLayer* addShape(ITensor& input) noexcept
    {
        return mImpl->addShape(input);
    }

    NetworkDefinitionCreationFlags getFlags() const noexcept
    {
        return mImpl->getFlags();
    }

    bool getFlag(NetworkDefinitionCreationFlag networkDefinitionCreationFlag) const noexcept
    {
        return mImpl->getFlag(networkDefinitionCreationFlag);
    }

    bool markOutputForShapes(ITensor& tensor) noexcept
    {
        return mImpl->markOutputForShapes(tensor);
    }

    bool unmarkOutputForShapes(ITensor& tensor) noexcept
    {
        return mImpl->unmarkOutputForShapes(tensor);
    }

    IParametricReLULayer* addParametricReLU(ITensor& input, ITensor& slope) noexcept
    {
        return mImpl->addParametricReLU(input, slope);
    }

    IConvolutionLayer* addConvolutionNd(
        ITensor& input, int64_t nbOutputMaps, Dims const& kernelSize, Weights kernelWeights, Weights biasWeights) noexcept
    {
        return mImpl->addConvolutionNd(input, nbOutputMaps, kernelSize, kernelWeights, biasWeights);
    }

    IPoolingLayer* addPoolingNd(ITensor& input, PoolingType type, Dims const& windowSize) noexcept
    {
        return mImpl->addPoolingNd(input, type, windowSize);
    }

    //
    IDeconvolutionLayer* addDeconvolutionNd(
        ITensor& input, int64_t nbOutputMaps, Dims kernelSize, Weights kernelWeights, Weights biasWeights) noexcept
    {
        return mImpl->addDeconvolutionNd(input, nbOutputMaps, kernelSize, kernelWeights, biasWeights);
    }

    IScaleLayer* addScaleNd(
        ITensor& input, ScaleMode mode, Weights shift, Weights scale, Weights power, int32_t channelAxis) noexcept
    {
        return mImpl->addScaleNd(input, mode, shift, scale, power, channelAxis);
    }

    IResizeLayer* addResize(ITensor& input) noexcept
    {
        return mImpl->addResize(input);
    }

    ILoop* addLoop() noexcept
    {
        return mImpl->addLoop();
    }

    IIfConditional* addIfConditional() noexcept
    {
        return mImpl->addIfConditional();
    }

    ISelectLayer* addSelect(ITensor& condition, ITensor& thenInput, ITensor& elseInput) noexcept
    {
        return mImpl->addSelect(condition, thenInput, elseInput);
    }

    IAssertionLayer* addAssertion(ITensor& condition, char const* message) noexcept
    {
        return mImpl->addAssertion(condition, message);
    }

    IFillLayer* addFill(Dims const& dimensions, FillOperation op, DataType outputType) noexcept
    {
        return mImpl->addFillV2(dimensions, op, outputType);
    }

    IPaddingLayer* addPaddingNd(ITensor& input, Dims const& prePadding, Dims const& postPadding) noexcept
    {
        return mImpl->addPaddingNd(input, prePadding, postPadding);
    }

    bool setWeightsName(Weights weights, char const* name) noexcept
    {
        return mImpl->setWeightsName(weights, name);
    }

    //
    void setErrorRecorder(IErrorRecorder* recorder) noexcept
    {
        mImpl->setErrorRecorder(recorder);
    }

    IErrorRecorder* getErrorRecorder() const noexcept
    {
        return mImpl->getErrorRecorder();
    }

    IDequantizeLayer* addDequantize(ITensor& input, ITensor& scale, DataType outputType) noexcept
    {
        return mImpl->addDequantizeV2(input, scale, outputType);
    }

    IScatterLayer* addScatter(ITensor& data, ITensor& indices, ITensor& updates, ScatterMode mode) noexcept
    {
        return mImpl->addScatter(data, indices, updates, mode);
    }

    IQuantizeLayer* addQuantize(ITensor& input, ITensor& scale, DataType outputType) noexcept
    {
        return mImpl->addQuantizeV2(input, scale, outputType);
    }

    TRT_DEPRECATED IDynamicQuantizeLayer* addDynamicQuantize(
        ITensor& input, int32_t axis, int32_t blockSize, DataType outputType, DataType scaleType) noexcept
    {
        return mImpl->addDynamicQuantize(input, axis, blockSize, outputType, scaleType);
    }

    IDynamicQuantizeLayer* addDynamicQuantizeV2(
        ITensor& input, Dims const& blockShape, DataType outputType, DataType scaleType) noexcept
    {
        return mImpl->addDynamicQuantizeV2(input, blockShape, outputType, scaleType);
    }

    IEinsumLayer* addEinsum(ITensor* const* inputs, int32_t nbInputs, char const* equation) noexcept
    {
        return mImpl->addEinsum(inputs, nbInputs, equation);
    }

    IGridSampleLayer* addGridSample(ITensor& input, ITensor& grid) noexcept
    {
        return mImpl->addGridSample(input, grid);
    }

    TRT_DEPRECATED INMSLayer* addNMS(ITensor& boxes, ITensor& scores, ITensor& maxOutputBoxesPerClass) noexcept
    {
        return mImpl->addNMS(boxes, scores, maxOutputBoxesPerClass);
    }

    INMSLayer* addNMS(ITensor& boxes, ITensor& scores, ITensor& maxOutputBoxesPerClass, DataType indicesType) noexcept
    {
        return mImpl->addNMSV2(boxes, scores, maxOutputBoxesPerClass, indicesType);
    }

    IReverseSequenceLayer* addReverseSequence(ITensor& input, ITensor& sequenceLens) noexcept
    {
        return mImpl->addReverseSequence(input, sequenceLens);
    }

    TRT_DEPRECATED INormalizationLayer* addNormalization(ITensor& input, ITensor& scale, ITensor& bias, uint32_t axesMask) noexcept
    {
        return mImpl->addNormalization(input, scale, bias, axesMask);
    }

    ICumulativeLayer* addCumulative(ITensor& input, ITensor& axis, CumulativeOperation operation, bool exclusive, bool reverse) noexcept
    {
        return mImpl->addCumulative(input, axis, operation, exclusive, reverse);
    }

    TRT_DEPRECATED IAttention* addAttention(
        ITensor& query, ITensor& key, ITensor& value, AttentionNormalizationOp normOp, bool causal) noexcept
    {
        return mImpl->addAttention(query, key, value, normOp, causal);
    }

    IAttention* addAttentionV2(ITensor& query, ITensor& key, ITensor& value, AttentionNormalizationOp normOp,
        CausalMaskKind causalKind) noexcept
    {
        return mImpl->addAttentionV2(query, key, value, normOp, causalKind);
    }

    IRotaryEmbeddingLayer* addRotaryEmbedding(ITensor& input, ITensor& cosCache, ITensor& sinCache, bool interleaved, int32_t rotaryEmbeddingDim) noexcept
    {
        return mImpl->addRotaryEmbedding(input, cosCache, sinCache, interleaved, rotaryEmbeddingDim);
    }

    IKVCacheUpdateLayer* addKVCacheUpdate(
        ITensor& cache, ITensor& update, ITensor& writeIndices, KVCacheMode cacheMode) noexcept
    {
        return mImpl->addKVCacheUpdate(cache, update, writeIndices, cacheMode);
    }

    IMoELayer* addMoE(ITensor& hiddenStates, ITensor& selectedExpertsForTokens, ITensor& scoresForSelectedExperts) noexcept
    {
        return mImpl->addMoE(hiddenStates, selectedExpertsForTokens, scoresForSelectedExperts);
    }

    TRT_NODISCARD IDistCollectiveLayer* addDistCollective(ITensor& input, CollectiveOperation distCollectiveOp,
        ReduceOperation reduceOp, int64_t root, int64_t* groups, int64_t groupSize) noexcept
    {
        return mImpl->addDistCollective(input, distCollectiveOp, reduceOp, root, groups, groupSize);
    }

    virtual IBuilder& getBuilder() const noexcept
    {
        return mImpl->getBuilder();
    }

    bool markWeightsRefittable(char const* name) noexcept
    {
        return mImpl->markWeightsRefittable(name);
    }

    bool unmarkWeightsRefittable(char const* name) noexcept
    {
        return mImpl->unmarkWeightsRefittable(name);
    }

    bool areWeightsMarkedRefittable(char const* name) const noexcept
    {
        return mImpl->areWeightsMarkedRefittable(name);
    }

    ISqueezeLayer* addSqueeze(ITensor& input, ITensor& axes) noexcept
    {
        return mImpl->addSqueeze(input, axes);
    }

    ISqueezeLayer* addSqueeze(ITensor& input, ITensor* axes) noexcept
    {
        return mImpl->addSqueezeV2(input, axes);
    }

    IUnsqueezeLayer* addUnsqueeze(ITensor& input, ITensor& axes) noexcept
    {
        return mImpl->addUnsqueeze(input, axes);
    }

    TRT_NODISCARD INormalizationLayer* addNormalizationV2(ITensor& input, ITensor& scale, ITensor& bias, uint32_t axesMask) noexcept
    {
        return mImpl->addNormalizationV2(input, scale, bias, axesMask);
    }

protected:
    apiv::VNetworkDefinition* mImpl;
};

inline INetworkDefinition::~INetworkDefinition() noexcept = default;

enum class RuntimePlatform : int32_t
{
    kSAME_AS_BUILD = 0,

    kWINDOWS_AMD64 = 1,

};

template <>
struct impl::EnumMaxImpl<RuntimePlatform>
{
    static constexpr int32_t kVALUE = 2;
};

using BuilderFlags = uint32_t;

enum class BuilderFlag : int32_t
{

    kDEBUG = 2,

    kGPU_FALLBACK = 3,

    kREFIT = 4,

    kDISABLE_TIMING_CACHE = 5,

    kTF32 = 6,

    kSPARSE_WEIGHTS = 7,

    kSAFETY_SCOPE TRT_DEPRECATED_ENUM = 8,

    kDIRECT_IO TRT_DEPRECATED_ENUM = 11,

    kVERSION_COMPATIBLE = 12,

    kEXCLUDE_LEAN_RUNTIME = 13,

    kERROR_ON_TIMING_CACHE_MISS = 15,

    kDISABLE_COMPILATION_CACHE = 17,

    kSTRIP_PLAN = 18,

    kREFIT_IDENTICAL = 19,

    kWEIGHT_STREAMING = 20,

    kREFIT_INDIVIDUAL = 22,

    kSTRICT_NANS = 23,

    kMONITOR_MEMORY = 24,

    kEDITABLE_TIMING_CACHE = 26,

    kDISTRIBUTIVE_INDEPENDENCE = 27,

    kREQUIRE_USER_ALLOCATION = 28,

};

template <>
struct impl::EnumMaxImpl<BuilderFlag>
{
    static constexpr int32_t kVALUE = 29;
};

namespace v_1_0
{
struct TRT_DEPRECATED TimingCacheKey
{
    uint8_t data[16];
};

struct TRT_DEPRECATED TimingCacheValue
{
    uint64_t tacticHash;
    float timingMSec;
    static constexpr uint64_t kINVALID_TACTIC_HASH = UINT64_MAX;
};
} // namespace v_1_0

class TRT_DEPRECATED ITimingCache : public INoCopy
{
public:
    virtual ~ITimingCache() noexcept = 0;

    nvinfer1::IHostMemory* serialize() const noexcept
    {
        return mImpl->serialize();
    }

    bool combine(ITimingCache const& inputCache, bool ignoreMismatch) noexcept
    {
        return mImpl->combine(inputCache, ignoreMismatch);
    }

    bool reset() noexcept
    {
        return mImpl->reset();
    }

    int64_t queryKeys(TimingCacheKey* keyBuffer, int64_t capacity) const noexcept
    {
        return mImpl->queryKeys(keyBuffer, capacity);
    }

    TimingCacheValue query(TimingCacheKey const& key) const noexcept
    {
        return mImpl->query(key);
    }

    bool update(TimingCacheKey const& key, TimingCacheValue const& value) noexcept
    {
        return mImpl->update(key, value);
    }

protected:
    apiv::VTimingCache* mImpl;
};

inline ITimingCache::~ITimingCache() noexcept = default;

enum class MemoryPoolType : int32_t
{
    kWORKSPACE = 0,

    kDLA_MANAGED_SRAM = 1,

    kDLA_LOCAL_DRAM = 2,

    kDLA_GLOBAL_DRAM = 3,

    kTACTIC_DRAM = 4,

    kTACTIC_SHARED_MEMORY = 5,
};

template <>
struct impl::EnumMaxImpl<MemoryPoolType>
{
    static constexpr int32_t kVALUE = 6;
};

enum class PreviewFeature : int32_t
{
    kALIASED_PLUGIN_IO_10_03 = 0,

    kRUNTIME_ACTIVATION_RESIZE_10_10 = 1,
};

template <>
struct impl::EnumMaxImpl<PreviewFeature>
{
    static constexpr int32_t kVALUE = 2;
};

enum class HardwareCompatibilityLevel : int32_t
{
    kNONE = 0,

    kAMPERE_PLUS = 1,

    kSAME_COMPUTE_CAPABILITY = 2,
};

template <>
struct impl::EnumMaxImpl<HardwareCompatibilityLevel>
{
    static constexpr int32_t kVALUE = 3;
};

enum class ComputeCapability : int32_t
{
    kNONE = 0,
    kCURRENT = 1,
    kSM75 = 75,
    kSM80 = 80,
    kSM86 = 86,
    kSM89 = 89,
    kSM120 = 120,
    kSM121 = 121,
};

enum class TilingOptimizationLevel : int32_t
{
    kNONE = 0,

    kFAST = 1,

    kMODERATE = 2,

    kFULL = 3

};

template <>
struct impl::EnumMaxImpl<TilingOptimizationLevel>
{
    static constexpr int32_t kVALUE = 4;
};

namespace v_1_0
{
class IProgressMonitor : public IVersionedInterface
{
public:
    IProgressMonitor() = default;
    virtual ~IProgressMonitor() noexcept = default;

    InterfaceInfo getInterfaceInfo() const noexcept override
    {
        return InterfaceInfo{"IProgressMonitor", 1, 0};
    }

    virtual void phaseStart(char const* phaseName, char const* parentPhase, int32_t nbSteps) noexcept = 0;

    virtual bool stepComplete(char const* phaseName, int32_t step) noexcept = 0;

    virtual void phaseFinish(char const* phaseName) noexcept = 0;

}; // class IProgressMonitor
} // namespace v_1_0

using IProgressMonitor = v_1_0::IProgressMonitor;

class IBuilderConfig : public INoCopy
{
public:
    virtual ~IBuilderConfig() noexcept = 0;

    virtual void setAvgTimingIterations(int32_t avgTiming) noexcept
    {
        mImpl->setAvgTimingIterations(avgTiming);
    }

    int32_t getAvgTimingIterations() const noexcept
    {
        return mImpl->getAvgTimingIterations();
    }

    void setEngineCapability(EngineCapability capability) noexcept
    {
        mImpl->setEngineCapability(capability);
    }

    EngineCapability getEngineCapability() const noexcept
    {
        return mImpl->getEngineCapability();
    }

    void setFlags(BuilderFlags builderFlags) noexcept
    {
        mImpl->setFlags(builderFlags);
    }

    BuilderFlags getFlags() const noexcept
    {
        return mImpl->getFlags();
    }

    void clearFlag(BuilderFlag builderFlag) noexcept
    {
        mImpl->clearFlag(builderFlag);
    }

    void setFlag(BuilderFlag builderFlag) noexcept
    {
        mImpl->setFlag(builderFlag);
    }

    bool getFlag(BuilderFlag builderFlag) const noexcept
    {
        return mImpl->getFlag(builderFlag);
    }

    void setDeviceType(ILayer const* layer, DeviceType deviceType) noexcept
    {
        mImpl->setDeviceType(layer, deviceType);
    }

    DeviceType getDeviceType(ILayer const* layer) const noexcept
    {
        return mImpl->getDeviceType(layer);
    }

    bool isDeviceTypeSet(ILayer const* layer) const noexcept
    {
        return mImpl->isDeviceTypeSet(layer);
    }

    void resetDeviceType(ILayer const* layer) noexcept
    {
        mImpl->resetDeviceType(layer);
    }

    bool canRunOnDLA(ILayer const* layer) const noexcept
    {
        return mImpl->canRunOnDLA(layer);
    }

    void setDLACore(int32_t dlaCore) noexcept
    {
        mImpl->setDLACore(dlaCore);
    }

    int32_t getDLACore() const noexcept
    {
        return mImpl->getDLACore();
    }

    void setDefaultDeviceType(DeviceType deviceType) noexcept
    {
        mImpl->setDefaultDeviceType(deviceType);
    }

    DeviceType getDefaultDeviceType() const noexcept
    {
        return mImpl->getDefaultDeviceType();
    }

    void reset() noexcept
    {
        mImpl->reset();
    }

    void setProfileStream(cudaStream_t const stream) noexcept
    {
        return mImpl->setProfileStream(stream);
    }

    cudaStream_t getProfileStream() const noexcept
    {
        return mImpl->getProfileStream();
    }

    int32_t addOptimizationProfile(IOptimizationProfile const* profile) noexcept
    {
        return mImpl->addOptimizationProfile(profile);
    }

    int32_t getNbOptimizationProfiles() const noexcept
    {
        return mImpl->getNbOptimizationProfiles();
    }

    void setProfilingVerbosity(ProfilingVerbosity verbosity) noexcept
    {
        mImpl->setProfilingVerbosity(verbosity);
    }

    ProfilingVerbosity getProfilingVerbosity() const noexcept
    {
        return mImpl->getProfilingVerbosity();
    }

    bool setTacticSources(TacticSources tacticSources) noexcept
    {
        return mImpl->setTacticSources(tacticSources);
    }

    TacticSources getTacticSources() const noexcept
    {
        return mImpl->getTacticSources();
    }

    TRT_DEPRECATED nvinfer1::ITimingCache* createTimingCache(void const* blob, std::size_t size) const noexcept
    {
        return mImpl->createTimingCache(blob, size);
    }

    TRT_DEPRECATED bool setTimingCache(ITimingCache const& cache, bool ignoreMismatch) noexcept
    {
        return mImpl->setTimingCache(cache, ignoreMismatch);
    }

    TRT_DEPRECATED nvinfer1::ITimingCache const* getTimingCache() const noexcept
    {
        return mImpl->getTimingCache();
    }

    void setMemoryPoolLimit(MemoryPoolType pool, std::size_t poolSize) noexcept
    {
        mImpl->setMemoryPoolLimit(pool, poolSize);
    }

    std::size_t getMemoryPoolLimit(MemoryPoolType pool) const noexcept
    {
        return mImpl->getMemoryPoolLimit(pool);
    }

    void setPreviewFeature(PreviewFeature feature, bool enable) noexcept
    {
        mImpl->setPreviewFeature(feature, enable);
    }

    bool getPreviewFeature(PreviewFeature feature) const noexcept
    {
        return mImpl->getPreviewFeature(feature);
    }

    void setBuilderOptimizationLevel(int32_t level) noexcept
    {
        mImpl->setBuilderOptimizationLevel(level);
    }

    int32_t getBuilderOptimizationLevel() noexcept
    {
        return mImpl->getBuilderOptimizationLevel();
    }

    void setHardwareCompatibilityLevel(HardwareCompatibilityLevel hardwareCompatibilityLevel) noexcept
    {
        mImpl->setHardwareCompatibilityLevel(hardwareCompatibilityLevel);
    }

    HardwareCompatibilityLevel getHardwareCompatibilityLevel() const noexcept
    {
        return mImpl->getHardwareCompatibilityLevel();
    }

    void setPluginsToSerialize(char const* const* paths, int32_t nbPaths) noexcept
    {
        mImpl->setPluginsToSerialize(paths, nbPaths);
    }

    char const* getPluginToSerialize(int32_t index) const noexcept
    {
        return mImpl->getPluginToSerialize(index);
    }

    int32_t getNbPluginsToSerialize() const noexcept
    {
        return mImpl->getNbPluginsToSerialize();
    }

    bool setMaxAuxStreams(int32_t nbStreams) noexcept
    {
        return mImpl->setMaxAuxStreams(nbStreams);
    }

    int32_t getMaxAuxStreams() const noexcept
    {
        return mImpl->getMaxAuxStreams();
    }

    void setProgressMonitor(IProgressMonitor* monitor) noexcept
    {
        return mImpl->setProgressMonitor(monitor);
    }

    IProgressMonitor* getProgressMonitor() const noexcept
    {
        return mImpl->getProgressMonitor();
    }

    void setRuntimePlatform(RuntimePlatform runtimePlatform) noexcept
    {
        mImpl->setRuntimePlatform(runtimePlatform);
    }

    RuntimePlatform getRuntimePlatform() const noexcept
    {
        return mImpl->getRuntimePlatform();
    }

    void setMaxNbTactics(int32_t maxNbTactics) noexcept
    {
        mImpl->setMaxNbTactics(maxNbTactics);
    }

    int32_t getMaxNbTactics() const noexcept
    {
        return mImpl->getMaxNbTactics();
    }

    bool setTilingOptimizationLevel(TilingOptimizationLevel level) noexcept
    {
        return mImpl->setTilingOptimizationLevel(level);
    }

    TilingOptimizationLevel getTilingOptimizationLevel() const noexcept
    {
        return mImpl->getTilingOptimizationLevel();
    }

    bool setL2LimitForTiling(int64_t size) noexcept
    {
        return mImpl->setL2LimitForTiling(size);
    }

    int64_t getL2LimitForTiling() const noexcept
    {
        return mImpl->getL2LimitForTiling();
    }

    bool setNbComputeCapabilities(int32_t maxNbComputeCapabilities) noexcept
    {
        return mImpl->setNbComputeCapabilities(maxNbComputeCapabilities);
    }

    int32_t getNbComputeCapabilities() const noexcept
    {
        return mImpl->getNbComputeCapabilities();
    }

    bool setComputeCapability(ComputeCapability computeCapability, int32_t index) noexcept
    {
        return mImpl->setComputeCapability(computeCapability, index);
    }

    ComputeCapability getComputeCapability(int32_t index) const noexcept
    {
        return mImpl->getComputeCapability(index);
    }

    bool setBuildRoute(char const* buildRoute) noexcept
    {
        return mImpl->setBuildRoute(buildRoute);
    }

    char const* getBuildRoute() const noexcept
    {
        return mImpl->getBuildRoute();
    }

    char const* getAllBuildRoutes() const noexcept
    {
        return mImpl->getAllBuildRoutes();
    }

protected:
    apiv::VBuilderConfig* mImpl;
};

inline IBuilderConfig::~IBuilderConfig() noexcept = default;

using NetworkDefinitionCreationFlags = uint32_t;

enum class NetworkDefinitionCreationFlag : int32_t
{
    kSTRONGLY_TYPED TRT_DEPRECATED_ENUM = 0,
};

template <>
struct impl::EnumMaxImpl<NetworkDefinitionCreationFlag>
{
    static constexpr int32_t kVALUE = 1;
};

class IBuilder : public INoCopy
{
public:
    virtual ~IBuilder() noexcept = 0;

    int32_t getMaxDLABatchSize() const noexcept
    {
        return mImpl->getMaxDLABatchSize();
    }

    int32_t getNbDLACores() const noexcept
    {
        return mImpl->getNbDLACores();
    }

    void setGpuAllocator(IGpuAllocator* allocator) noexcept
    {
        mImpl->setGpuAllocator(allocator);
    }

    nvinfer1::IBuilderConfig* createBuilderConfig() noexcept
    {
        return mImpl->createBuilderConfig();
    }

    nvinfer1::INetworkDefinition* createNetworkV2(NetworkDefinitionCreationFlags flags) noexcept
    {
        return mImpl->createNetworkV2(flags);
    }

    nvinfer1::IOptimizationProfile* createOptimizationProfile() noexcept
    {
        return mImpl->createOptimizationProfile();
    }

    void setErrorRecorder(IErrorRecorder* recorder) noexcept
    {
        mImpl->setErrorRecorder(recorder);
    }

    IErrorRecorder* getErrorRecorder() const noexcept
    {
        return mImpl->getErrorRecorder();
    }

    void reset() noexcept
    {
        mImpl->reset();
    }

    nvinfer1::IHostMemory* buildSerializedNetwork(INetworkDefinition& network, IBuilderConfig& config) noexcept
    {
        return mImpl->buildSerializedNetwork(network, config);
    }

    bool buildSerializedNetworkToStream(
        INetworkDefinition& network, IBuilderConfig& config, IStreamWriter& writer) noexcept
    {
        return mImpl->buildSerializedNetworkToStream(network, config, writer);
    }

    bool isNetworkSupported(INetworkDefinition const& network, IBuilderConfig const& config) const noexcept
    {
        return mImpl->isNetworkSupported(network, config);
    }

    ILogger* getLogger() const noexcept
    {
        return mImpl->getLogger();
    }

    bool setMaxThreads(int32_t maxThreads) noexcept
    {
        return mImpl->setMaxThreads(maxThreads);
    }

    int32_t getMaxThreads() const noexcept
    {
        return mImpl->getMaxThreads();
    }

    IPluginRegistry& getPluginRegistry() noexcept
    {
        return mImpl->getPluginRegistry();
    }

protected:
    apiv::VBuilder* mImpl;
};

inline IBuilder::~IBuilder() noexcept = default;

} // namespace nvinfer1

extern "C" TENSORRTAPI void* createInferBuilder_INTERNAL(void* logger, int32_t version) noexcept;

namespace nvinfer1
{
namespace
{

inline IBuilder* createInferBuilder(ILogger& logger) noexcept
{
    return static_cast<IBuilder*>(createInferBuilder_INTERNAL(&logger, NV_TENSORRT_VERSION));
}

} // namespace

extern "C" TENSORRTAPI nvinfer1::IPluginRegistry* getBuilderPluginRegistry(
    nvinfer1::EngineCapability capability) noexcept;

extern "C" TENSORRTAPI bool setInternalLibraryPath(AsciiChar const* path) noexcept;

namespace safe
{
class IPluginRegistry;
} // namespace safe

} // namespace nvinfer1

#endif // NV_INFER_H
